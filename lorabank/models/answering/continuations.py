"""How likely a causal language model finds the tokens behind others, and whether it would write them itself.

    sum_t log p(c_t | prompt, c_<t),   greedy: every c_t is the likeliest token of its place

Unlike an answer (`lorabank.models.answering.likelihood`), a continuation has no end token of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.models.tasks.batches import Enter, check_prompts, evaluating, forward, log_probabilities, split_batch
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import row_batches
from lorabank.models.tasks.transfer import Results, sent


def continuation_log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    continuations: Sequence[list[int]],
    *,
    batch_size: int,
    enter: Enter,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-likelihood of each prompt's own continuation, and whether greedy decoding gives it.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer, which has a pad token.
        prompts: Token ids of n prompts, none of them empty.
        continuations: Token ids of n continuations; an empty one has the log-likelihood 0 and is greedy.
        batch_size: Rows of a forward pass; rows of similar length go together, longest first.
        enter: Called before every forward pass with the row number of each of its rows.

    Returns:
        float64 ``[n]``, the sums of log p; bool ``[n]``.

    Raises:
        DataError: A prompt has no tokens.
    """
    check_prompts(prompts)
    sums, greedy = np.zeros(len(prompts)), np.ones(len(prompts), np.bool_)
    results = Results(sums, greedy)
    lengths = [len(prompt) + len(more) for prompt, more in zip(prompts, continuations, strict=True)]
    with evaluating(model):
        for batch in row_batches(model, lengths, batch_size):
            rows = [i for i in batch if continuations[i]]
            first = min((len(prompts[i]) for i in rows), default=1)
            width = max((lengths[i] for i in rows), default=1) - 1
            for part in split_batch(model, rows, width - first + 1, width):
                enter(part)
                results.put(part, *_passed(model, tokenizer, [(prompts[i], continuations[i]) for i in part]))
    results.read()
    return sums, greedy


def _passed(model: Any, tokenizer: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Sums ``[n]`` and greedy ``[n]`` from one forward pass, padded on the right, which no token sees."""
    inputs = pad_batch(tokenizer, [(prompt + more)[:-1] for prompt, more in pairs])
    first = min(len(prompt) for prompt, _ in pairs) - 1  # column that predicts the first token that counts
    keep = inputs["input_ids"].shape[1] - first
    targets = torch.full((len(pairs), keep), -100, dtype=torch.long)
    for i, (prompt, more) in enumerate(pairs):
        start = len(prompt) - 1 - first
        targets[i, start : start + len(more)] = torch.tensor(more, dtype=torch.long)
    given = sent({**inputs, "targets": targets}, model.device)
    targets = given.pop("targets")
    logits = forward(model, keep, use_cache=False, **given).logits
    likeliest = (logits.argmax(-1) == targets) | (targets < 0)
    return log_probabilities(logits, targets).sum(-1), likeliest.all(-1)
