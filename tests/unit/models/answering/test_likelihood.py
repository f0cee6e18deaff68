from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from lorabank.core.errors import DataError
from lorabank.models.answering import likelihood
from lorabank.models.answering.label_tree import takes_tree
from lorabank.models.answering.likelihood import completion_log_likelihoods, label_log_likelihoods
from lorabank.models.tasks import batches
from lorabank.models.tasks.padding import padding_of

PAD, END, VOCABULARY = 1, 2, 64
TOKENIZER: Any = SimpleNamespace(pad_token_id=PAD, eos_token_id=END)


def sentences(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]


PROMPTS = sentences(9, 3, 14, 1, 6)
LONGEST_FIRST = [2, 0, 4, 1, 3]
INSTRUCTION = sentences(11, seed=1)[0]
INSTRUCTED = [INSTRUCTION + prompt for prompt in PROMPTS]
LABELS = {
    "one token": [[7], [8], [11]],
    "with an end": [[7, END], [8, END], [11, END], [12, END]],
    "beginning alike": [[7, 8, END], [7, 9, 10, END], [7, END], [11, 7, 8, END]],
    "one label": [[9, 10, END]],
}


# ------------------------------------------------------------------------------------------------------ tiny models


class NoLogitsToKeep(tf.LlamaForCausalLM):
    """Always makes logits for all tokens."""

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
    ):
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=return_dict,
        )


IDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": END, "pad_token_id": PAD}
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES = IDS | WIDTHS | {"max_position_embeddings": 50}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 50}
OPT = SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}
GEMMA = GROUPED | {"head_dim": 8, "sliding_window": 5}
NEO = IDS | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 50, "window_size": 5}
NEO |= {"attention_types": [[["global", "local"], 1]]}
BLOOM = IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}
MAMBA = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
T5 = IDS | {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD}
BART = IDS | {"d_model": 32, "max_position_embeddings": 50, "decoder_start_token_id": END}
BART |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
BART |= {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}

Kind = tuple[type, type, dict[str, Any]]
# All labels behind a prompt in one forward pass.
TREES: dict[str, Kind] = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, GROUPED),
    "llama, eager": (tf.LlamaForCausalLM, tf.LlamaConfig, GROUPED | {"attn_implementation": "eager"}),
    "llama, all logits": (NoLogitsToKeep, tf.LlamaConfig, GROUPED),
    "gpt_neox": (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, SIZES),
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config, GROUPED),
    "gpt2, learned positions": (tf.GPT2LMHeadModel, tf.GPT2Config, GPT2),
    "opt, learned positions": (tf.OPTForCausalLM, tf.OPTConfig, OPT),
    "mistral, wide window": (tf.MistralForCausalLM, tf.MistralConfig, GROUPED | {"sliding_window": 40}),
}
# Rows behind an expanded cache: windows that are too narrow, an attention of their own (GPT-Neo), no position_ids
# (BLOOM), positions that do not count from 0 (RoBERTa).
CACHES: dict[str, Kind] = {
    "mistral, narrow window": (tf.MistralForCausalLM, tf.MistralConfig, GROUPED | {"sliding_window": 5}),
    "gemma3, narrow window": (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, GEMMA),
    "gpt_neo, narrow window": (tf.GPTNeoForCausalLM, tf.GPTNeoConfig, NEO),
    "bloom": (tf.BloomForCausalLM, tf.BloomConfig, BLOOM),
    "roberta": (tf.RobertaForCausalLM, tf.RobertaConfig, SIZES | {"is_decoder": True}),
}
# No keys and values to go on from.
PLAIN: dict[str, Kind] = {"mamba": (tf.MambaForCausalLM, tf.MambaConfig, MAMBA)}
CAUSAL = TREES | CACHES | PLAIN
SEQ2SEQ: dict[str, Kind] = {
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config, T5),
    "mt5": (tf.MT5ForConditionalGeneration, tf.MT5Config, T5),
    "bart": (tf.BartForConditionalGeneration, tf.BartConfig, BART),
    "m2m_100": (tf.M2M100ForConditionalGeneration, tf.M2M100Config, BART),
}
EVERY = CAUSAL | SEQ2SEQ


def tiny(name: str) -> Any:
    """Random, with weights wide enough that every token and position shows in the result."""
    model_class, config_class, sizes = EVERY[name]
    torch.manual_seed(3)
    model = model_class(config_class(**sizes)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model


class Entered:
    """Makes a model answer each row in a way of its own: what it embeds is moved by the vector of ``rows``."""

    def __init__(self, model: Any, rows: int, *, alike: bool = False) -> None:
        self.calls: list[list[int]] = []
        width = model.get_input_embeddings().embedding_dim
        vectors = torch.randn(1 if alike else rows, 1, width, generator=torch.Generator().manual_seed(5))
        self._vectors = vectors.expand(rows, 1, width)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings == VOCABULARY:
                module.register_forward_hook(self._move)

    def __call__(self, rows: Sequence[int]) -> None:
        self.calls.append(list(rows))

    def _move(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        assert len(output) == len(self.calls[-1])
        return output + self._vectors[self.calls[-1]]


def nothing(rows: Sequence[int]) -> None:
    """The model is in one state for all rows."""


@torch.no_grad()
def plain(model: Any, prompt: list[int], answer: list[int]) -> float:
    """One row, one forward pass, no padding, no cache."""
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id]
        inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([start + answer[:-1]])}
        before = 0
    else:
        inputs, before = {"input_ids": torch.tensor([prompt + answer])}, len(prompt) - 1
    logs = model(**inputs, use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logs[before + k, token]) for k, token in enumerate(answer))


def plain_table(model: Any, prompts: list[list[int]], labels: list[list[int]], entered: Any = nothing) -> np.ndarray:
    """`plain` for every prompt and label, each prompt in its own state."""
    rows = []
    for i, prompt in enumerate(prompts):
        entered([i])
        rows.append([plain(model, prompt, label) for label in labels])
    return np.array(rows)


def score(model: Any, prompts: list[list[int]], labels: list[list[int]], **changes: Any) -> np.ndarray:
    settings = {"batch_size": 2, "enter": nothing, "share_prefix": False} | changes
    return label_log_likelihoods(model, TOKENIZER, prompts, labels, **settings)


# ----------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", EVERY)
def test_labels_score_as_in_one_plain_pass_each(name: str, labels: list[list[int]]) -> None:
    model = tiny(name)
    expected = plain_table(model, PROMPTS, labels)
    assert np.ptp(expected, axis=0).min() > 0.1  # the prompts matter, so that their order shows
    found = score(model, PROMPTS, labels, batch_size=3)
    assert (found.shape, found.dtype) == ((5, len(labels)), np.float64)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen2", "mistral, narrow window", "t5"])
def test_batch_size_and_shared_instruction_change_nothing(name: str, batch_size: int, share_prefix: bool) -> None:
    model, labels = tiny(name), LABELS["beginning alike"]
    entered = Entered(model, len(INSTRUCTED), alike=True)
    found = score(model, INSTRUCTED, labels, batch_size=batch_size, enter=entered, share_prefix=share_prefix)
    np.testing.assert_allclose(found, plain_table(model, INSTRUCTED, labels, entered), atol=2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_every_row_is_answered_in_its_own_state(name: str) -> None:
    model, labels = tiny(name), LABELS["beginning alike"]
    entered = Entered(model, len(PROMPTS))
    found = score(model, PROMPTS, labels, batch_size=3, enter=entered)
    expected = plain_table(model, PROMPTS, labels, entered)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(found - score(tiny(name), PROMPTS, labels)).max(1).min() > 1e-2  # the state shows in every row


def each(rows: list[int], times: int) -> list[int]:
    return [row for row in rows for _ in range(times)]


def test_what_is_entered_before_each_pass() -> None:
    labels = LABELS["with an end"]

    def calls(name: str, prompts: list[list[int]], share_prefix: bool) -> list[list[int]]:
        seen: list[list[int]] = []
        score(
            tiny(name),
            prompts,
            labels,
            batch_size=3,
            enter=lambda rows: seen.append(list(rows)),
            share_prefix=share_prefix,
        )
        return seen

    first, second = LONGEST_FIRST[:3], LONGEST_FIRST[3:]
    assert calls("llama", INSTRUCTED, False) == [first, second]
    assert calls("llama", INSTRUCTED, True) == [first[:1], first, second]  # the instruction once, as one row
    assert calls("llama", PROMPTS, True) == [first, second]  # nothing in common
    assert calls("t5", INSTRUCTED, True) == [first, each(first, 4), second, each(second, 4)]
    assert calls("gpt_neo, narrow window", PROMPTS, True) == [first, each(first, 4), second, each(second, 4)]
    one_length_each = [rows for i in LONGEST_FIRST for rows in ([i], [i] * 4)]
    assert calls("bloom", PROMPTS, False) == one_length_each
    whole = calls("mamba", PROMPTS, False)  # 20 rows, three at a time
    assert [len(rows) for rows in whole] == [3] * 6 + [2]
    assert sorted(row for rows in whole for row in rows) == each([0, 1, 2, 3, 4], 4)


def test_the_instruction_passes_once_and_logits_are_made_for_labels_only() -> None:
    model = tiny("llama")
    assert padding_of(model).left  # by passes of its own, once for a model
    embedded, projected = list[int](), list[tuple[int, int]]()
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: embedded.append(inputs[0].numel()))
    model.lm_head.register_forward_pre_hook(lambda module, inputs: projected.append(tuple(inputs[0].shape[:2])))
    same_length = [INSTRUCTION + prompt for prompt in sentences(4, 4, 4, 4)]
    score(model, same_length, LABELS["with an end"], batch_size=2, share_prefix=True)
    # four labels of a word and an end: only the words are passed
    assert embedded == [len(INSTRUCTION), 2 * (4 + 4), 2 * (4 + 4)]
    assert projected[1:] == [(2, 1 + 4), (2, 1 + 4)]


@pytest.mark.parametrize("name", [*TREES, *SEQ2SEQ])
def test_logits_that_would_not_fit_make_smaller_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, labels = tiny(name), LABELS["beginning alike"]
    monkeypatch.setattr(batches, "_MOST_LOGITS", 1)
    entered = Entered(model, len(PROMPTS))
    found = score(model, PROMPTS, labels, batch_size=5, enter=entered)
    assert {len(set(rows)) for rows in entered.calls} == {1}
    np.testing.assert_allclose(found, plain_table(model, PROMPTS, labels, entered), atol=2e-5)


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "bloom", "mistral, narrow window", "t5"])
def test_batches_by_tokens_change_nothing(name: str, share_prefix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with rows that count for 16 tokens."""
    monkeypatch.setattr(likelihood, "by_tokens", lambda model: True)
    monkeypatch.setattr(likelihood, "_ROW_TOKENS", 16)
    model, labels = tiny(name), LABELS["beginning alike"]
    entered = Entered(model, len(INSTRUCTED), alike=True)
    found = score(model, INSTRUCTED, labels, batch_size=3, enter=entered, share_prefix=share_prefix)
    np.testing.assert_allclose(found, plain_table(model, INSTRUCTED, labels, entered), atol=2e-5)


@pytest.mark.parametrize(("rows", "shares"), [(4, False), (24, True)])
def test_by_tokens_an_instruction_is_passed_once_where_that_saves_passes(
    rows: int, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 11 + 4 tokens and 2 nodes, 64 tokens a pass: 3 to a pass, and 10 without the instruction's 11."""
    monkeypatch.setattr(likelihood, "by_tokens", lambda model: True)
    monkeypatch.setattr(likelihood, "_ROW_TOKENS", 16)
    calls: list[list[int]] = []
    prompts = [INSTRUCTION + prompt for prompt in sentences(*[4] * rows)]
    enter = lambda given: calls.append(list(given))  # noqa: E731
    score(tiny("llama"), prompts, [[7, END], [8, END]], batch_size=4, enter=enter, share_prefix=True)
    assert [len(call) for call in calls] == ([1, 9, 9, 6] if shares else [3, 1])


def test_which_models_take_a_tree() -> None:
    assert {name for name in CAUSAL if takes_tree(tiny(name), 20)} == set(TREES)
    assert takes_tree(tiny("mistral, narrow window"), 5)
    assert not takes_tree(tiny("mistral, wide window"), 41)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, labels = tiny("llama"), LABELS["beginning alike"]
    expected = plain_table(model, INSTRUCTED, labels)
    found = score(model.to(dtype), INSTRUCTED, labels, share_prefix=True)
    np.testing.assert_allclose(found, expected, atol=0.25)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_on_a_gpu(name: str) -> None:
    model, labels = tiny(name), LABELS["beginning alike"]
    expected = plain_table(model, INSTRUCTED, labels)
    found = score(model.to("cuda"), INSTRUCTED, labels, share_prefix=True)
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_dropout_is_off_and_the_model_goes_on_training() -> None:
    model, labels = tiny("gpt2, learned positions"), LABELS["with an end"]
    expected = plain_table(model, PROMPTS, labels)
    model.train()
    np.testing.assert_allclose(score(model, PROMPTS, labels), expected, atol=2e-5)
    assert model.training


def test_prompts_that_are_one_another_s_beginning() -> None:
    model, labels = tiny("llama"), LABELS["beginning alike"]
    prompts = [INSTRUCTION, [*INSTRUCTION, 9], INSTRUCTION[:-1], INSTRUCTION]
    found = score(model, prompts, labels, share_prefix=True)
    np.testing.assert_allclose(found, plain_table(model, prompts, labels), atol=2e-5)


def test_no_prompts() -> None:
    assert score(tiny("llama"), [], LABELS["with an end"]).shape == (0, 4)
    assert score(tiny("t5"), [], LABELS["with an end"]).shape == (0, 4)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="prompt of row 2 has no tokens") as caught:
        score(tiny("llama"), [[5], [], [6]], [[7]])
    assert caught.value.hint
    with pytest.raises(DataError, match="row 1"):
        completion_log_likelihoods(tiny("t5"), TOKENIZER, [[]], [[7]], batch_size=1, enter=nothing)


@pytest.mark.parametrize("labels", [[], [[7], []]])
def test_a_label_needs_a_token(labels: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="token"):
        score(tiny("llama"), [[5]], labels)


# ------------------------------------------------------------------------------------------------------ completions

COMPLETIONS = [[7, END], sentences(8, seed=2)[0], [9], [10, 11, END], sentences(12, seed=3)[0]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("name", EVERY)
def test_completions_score_as_in_one_plain_pass_each(name: str, batch_size: int) -> None:
    model = tiny(name)
    entered = Entered(model, len(PROMPTS))
    found, tokens = completion_log_likelihoods(
        model, TOKENIZER, PROMPTS, COMPLETIONS, batch_size=batch_size, enter=entered
    )
    expected = []
    for i, pair in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        entered([i])
        expected.append(plain(model, *pair))
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert tokens.tolist() == [2, 8, 1, 3, 12]


def test_plain_text_is_scored_from_its_second_token_on() -> None:
    model = tiny("llama")
    texts = [[7, 8, 9, END], [10], [11, 12], []]
    found, tokens = completion_log_likelihoods(model, TOKENIZER, [[]] * 4, texts, batch_size=4, enter=nothing)
    expected = [plain(model, [7], [8, 9, END]), 0.0, plain(model, [11], [12]), 0.0]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert tokens.tolist() == [3, 0, 1, 0]


def test_completions_whose_logits_would_not_fit_make_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(batches, "_MOST_LOGITS", 1)
    seen: list[list[int]] = []
    found, _ = completion_log_likelihoods(
        model, TOKENIZER, PROMPTS, COMPLETIONS, batch_size=5, enter=lambda rows: seen.append(list(rows))
    )
    assert sorted(seen) == [[0], [1], [2], [3], [4]]
    expected = [plain(model, *pair) for pair in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(found, expected, atol=5e-5)
