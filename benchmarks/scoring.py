"""Four labels scored behind a prompt, against one plain forward pass per label; and how much of a batch is padding.

The model has SmolLM2-135M's widths with a tenth of its layers and of its vocabulary, so that its head has the share of
the work that it has there. Both forms get the same batches, made by length; the plain one pads on the right and makes
logits for all tokens, as a transformers model does when nothing else is asked of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.harness import Result, compare, from_comparison
from lorabank.models.answering.likelihood import label_log_likelihoods
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import prompt_batches, row_batches

PAD, END, VOCABULARY = 0, 2, 4915
TOKENIZER: Any = SimpleNamespace(pad_token_id=PAD, eos_token_id=END)
LABELS = [[11, END], [12, END], [13, END], [14, 15, 16, END]]  # World, Sports, Business, Science or Technology
INSTRUCTION, SHORTEST, LONGEST = 16, 24, 96  # tokens
ROWS, BATCH_SIZE = 16, 8
BAR, PADDING_BAR = 0.25, 1.10
ROUNDS = 12


def measure() -> list[Result]:
    """With a state per row (the whole prompt in one pass), and with one state for all (the instruction once)."""
    model = language_model()
    prompts = random_prompts(ROWS)
    lengths = [len(prompt) for prompt in prompts]
    forms = {
        "plain": lambda: plain_scores(model, prompts, LABELS, row_batches(model, lengths, BATCH_SIZE)),
        "tree": lambda: tree_scores(model, prompts, share_prefix=False),
        "shared": lambda: tree_scores(model, prompts, share_prefix=True),
    }
    reference = torch.tensor(forms["plain"](), dtype=torch.float64)
    for name in ("tree", "shared"):
        torch.testing.assert_close(torch.tensor(forms[name]()), reference, atol=1e-4, rtol=0)
    found = compare(forms, baseline="plain", rounds=ROUNDS)
    what = f"{len(LABELS)} labels in one pass, against one plain pass each"
    return [
        from_comparison("scoring", what, found["tree"], BAR),
        from_comparison("scoring", f"{what}; instruction passed once", found["shared"], BAR),
        _padding(model),
    ]


def language_model() -> LlamaForCausalLM:
    """Random weights, float32, on the CPU."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def random_prompts(rows: int) -> list[list[int]]:
    """Prompts of different length that begin with the same instruction."""
    draw = random.Random(1)
    instruction = [draw.randrange(20, VOCABULARY) for _ in range(INSTRUCTION)]
    lengths = [draw.randint(SHORTEST, LONGEST) - INSTRUCTION for _ in range(rows)]
    return [instruction + [draw.randrange(20, VOCABULARY) for _ in range(length)] for length in lengths]


@torch.inference_mode()
def plain_scores(
    model: PreTrainedModel, prompts: Sequence[list[int]], labels: Sequence[list[int]], batches: Iterable[Sequence[int]]
) -> list[list[float]]:
    """Sums of log p ``[n][L]``: one forward pass over prompt and label for each label and batch of rows."""
    scores = torch.zeros(len(prompts), len(labels), dtype=torch.float64, device=model.device)
    for rows in batches:
        for column, label in enumerate(labels):
            ids = torch.tensor(label, device=model.device)[:, None]
            inputs = pad_batch(TOKENIZER, [prompts[i] + label for i in rows])
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            logits = model(**inputs, use_cache=False).logits
            for row, i in enumerate(rows):
                first = len(prompts[i]) - 1
                logs = logits[row, first : first + len(label)].float().log_softmax(-1)
                scores[i, column] = logs.gather(-1, ids).sum()
    return scores.tolist()


def tree_scores(model: PreTrainedModel, prompts: Sequence[list[int]], *, share_prefix: bool) -> Any:
    """The same by `label_log_likelihoods`: every label in one pass."""
    return label_log_likelihoods(
        model,
        TOKENIZER,
        prompts,
        LABELS,
        batch_size=BATCH_SIZE,
        enter=lambda rows: None,
        share_prefix=share_prefix,
    )


def _padding(model: LlamaForCausalLM) -> Result:
    """Tokens passed over tokens of the prompts, for 512 prompts in batches of 16."""
    lengths = [len(prompt) for prompt in random_prompts(512)]
    batches = prompt_batches(model, lengths, 16)
    passed = sum(len(rows) * max(lengths[i] for i in rows) for rows in batches)
    return Result("scoring", "prompt tokens passed, padding included", passed / sum(lengths), PADDING_BAR, "x", {})
