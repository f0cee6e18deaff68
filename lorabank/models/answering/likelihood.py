"""How likely a language model finds an answer: every label of a list, or one completion per prompt.

Sums of log p over the answer's tokens, end token included, as a plain forward pass over prompt and answer gives them
(within 1e-4 in float32), at a fraction of its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.models.answering.label_rows import cached_log_likelihoods, decoded_log_likelihoods
from lorabank.models.answering.label_tree import LabelTree, keeps_keys, pass_prefix, takes_tree, tree_log_likelihoods
from lorabank.models.tasks.batches import (
    Enter,
    check_prompts,
    evaluating,
    forward,
    log_probabilities,
    split_batch,
)
from lorabank.models.tasks.decoder_inputs import decoder_inputs, pad_targets
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import Length, padding_of, prompt_batches, row_batches
from lorabank.models.tasks.transfer import Results, sent

# A shorter beginning costs more in an extra forward pass than it saves.
_SHORTEST_PREFIX = 8

_ROW_TOKENS = 256
"""Tokens that a row counts for in the batches of a GPU, where a pass over few tokens takes as long as over many."""


def label_log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    labels: Sequence[list[int]],
    *,
    batch_size: int,
    enter: Enter,
    share_prefix: bool,
) -> NDArray[np.float64]:
    """Log-likelihood of every label behind every prompt.

    A causal model gets the labels as a tree behind the prompt, in one forward pass
    (`lorabank.models.answering.label_tree`). One that cannot take it gets n x L rows behind an expanded cache, one
    with a recurrent state plain passes. An encoder runs once per prompt, its decoder once over n x L rows. Batches are
    made by length, longest first, and made smaller where their logits would not fit.

    Args:
        model: A causal or encoder-decoder language model of transformers.
        tokenizer: Its tokenizer, which has a pad token.
        prompts: Token ids of n prompts.
        labels: Token ids of L labels, end token included.
        batch_size: Prompts of a forward pass; on a GPU, of a causal model, as many as have the tokens of so many
            prompts of 256.
        enter: Called before every forward pass with the row number of each of its rows.
        share_prefix: The model is in the same state for all rows, so that what all prompts begin with is passed once
            (``enter`` then gets one row).

    Returns:
        float64 ``[n, L]``.

    Raises:
        DataError: A prompt has no tokens.
        ValueError: A label has none.
    """
    check_prompts(prompts)
    if not labels or not all(labels):
        raise ValueError("every label needs a token")
    if model.config.is_encoder_decoder:
        score = _decoded if padding_of(model).right else _whole
    else:
        score = _behind if keeps_keys(model) else _whole
    with evaluating(model):
        return score(_Request(model, tokenizer, prompts, labels, batch_size, enter, share_prefix))


def completion_log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    *,
    batch_size: int,
    enter: Enter,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-likelihood of each prompt's own completion.

    Args:
        model: A causal or encoder-decoder language model of transformers.
        tokenizer: Its tokenizer, which has a pad token.
        prompts: Token ids of n prompts. Behind an empty one a causal model cannot predict the completion's first
            token, which is then left out of sum and count.
        completions: Token ids of n completions, end token included.
        batch_size: Rows of a forward pass.
        enter: Called before every forward pass with the row number of each of its rows.

    Returns:
        float64 ``[n]``, the sums of log p; int64 ``[n]``, over how many tokens.

    Raises:
        DataError: A prompt of an encoder-decoder has no tokens.
    """
    causal = not model.config.is_encoder_decoder
    if not causal:
        check_prompts(prompts)
    sizes = [(len(prompt), len(completion)) for prompt, completion in zip(prompts, completions, strict=True)]
    tokens = np.array([max(0, answer - (causal and not prompt)) for prompt, answer in sizes], np.int64)
    sums = np.zeros(len(sizes))
    results = Results(sums)
    score = _continued if causal else _answered
    with evaluating(model):
        lengths: list[Length] = [prompt + answer for prompt, answer in sizes]
        if not (causal or padding_of(model).right):
            lengths = list(sizes)
        for batch in row_batches(model, lengths, batch_size):
            rows = [i for i in batch if tokens[i]]
            width = max((sizes[i][0] * causal + sizes[i][1] for i in rows), default=1)
            before = min((sizes[i][0] for i in rows), default=0) if causal else 0
            for part in split_batch(model, rows, width - before, width):
                enter(part)
                results.put(part, score(model, tokenizer, [(prompts[i], completions[i]) for i in part]))
        results.read()
    return sums, tokens


def by_tokens(model: Any) -> bool:
    """Whether the number of passes decides how long scoring takes, and not that of tokens: on a GPU."""
    return bool(model.device.type == "cuda")


@dataclass(frozen=True)
class _Request:
    """The arguments of `label_log_likelihoods`."""

    model: Any
    tokenizer: Any
    prompts: Sequence[list[int]]
    labels: Sequence[list[int]]
    batch_size: int
    enter: Enter
    share_prefix: bool

    @property
    def lengths(self) -> list[int]:
        return [len(prompt) for prompt in self.prompts]

    def empty(self) -> NDArray[np.float64]:
        return np.zeros((len(self.prompts), len(self.labels)))

    def batches(self, columns: int, passed: int = 0) -> list[list[int]]:
        """Prompts that share a pass: so many rows, or on a GPU the tokens of so many long ones.

        Args:
            columns: Tokens behind each prompt.
            passed: Tokens of each prompt that another pass has done.
        """
        tokens = self.batch_size * _ROW_TOKENS if by_tokens(self.model) else None
        return prompt_batches(self.model, self.lengths, self.batch_size, tokens=tokens, more=columns - passed)

    def common(self, columns: int) -> list[int]:
        """What all prompts begin with, when it pays; each keeps a token of its own."""
        if not self.share_prefix or len(self.prompts) < 2:
            return []
        first, last = min(self.prompts), max(self.prompts)  # in the order of words: these two differ the earliest
        most = min(self.lengths) - 1
        length = next((k for k in range(most) if first[k] != last[k]), most)
        if by_tokens(self.model):
            pays = 1 + len(self.batches(columns, length)) < len(self.batches(columns))
        else:
            pays = length >= _SHORTEST_PREFIX
        return first[:length] if pays else []


def _behind(request: _Request) -> NDArray[np.float64]:
    """A causal model: the labels as a tree, or as rows behind an expanded cache."""
    model, tokenizer, prompts, labels = request.model, request.tokenizer, request.prompts, request.labels
    scores = request.empty()
    tree, deepest = LabelTree.build(labels).to(model.device), max(map(len, labels))
    expanded = len(labels) * max(1, deepest - 1)
    common, prefix = request.common(tree.columns), None
    results = Results(scores)
    for batch in request.batches(tree.columns, len(common)):
        longest = len(prompts[batch[0]])
        if not takes_tree(model, longest + deepest):
            for rows in split_batch(model, batch, expanded, max(longest, expanded)):
                own = [prompts[i] for i in rows]
                results.put(rows, cached_log_likelihoods(model, tokenizer, own, labels, rows, request.enter))
            continue
        if common and prefix is None:
            request.enter(batch[:1])
            prefix = pass_prefix(model, common)
        for rows in split_batch(model, batch, tree.columns, longest + tree.columns):
            request.enter(rows)
            own = [prompts[i] for i in rows]
            results.put(rows, tree_log_likelihoods(model, tokenizer, own, tree, prefix))
    results.read()
    return scores


def _decoded(request: _Request) -> NDArray[np.float64]:
    """An encoder-decoder: one encoder pass, one decoder pass over the labels of all its rows."""
    scores = request.empty()
    results = Results(scores)
    width = len(request.labels) * max(map(len, request.labels))
    for batch in row_batches(request.model, request.lengths, request.batch_size):
        for rows in split_batch(request.model, batch, width, width):
            own = [request.prompts[i] for i in rows]
            found = decoded_log_likelihoods(request.model, request.tokenizer, own, request.labels, rows, request.enter)
            results.put(rows, found)
    results.read()
    return scores


def _whole(request: _Request) -> NDArray[np.float64]:
    """A recurrent state, no cache, or labels that must not be padded: prompt and label anew for every label."""
    size = len(request.labels)
    sums, _ = completion_log_likelihoods(
        request.model,
        request.tokenizer,
        [prompt for prompt in request.prompts for _ in range(size)],
        list(request.labels) * len(request.prompts),
        batch_size=request.batch_size,
        enter=lambda rows: request.enter([row // size for row in rows]),
    )
    return sums.reshape(len(request.prompts), size)


def _continued(model: Any, tokenizer: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Sums of log p ``[n]`` of a causal model, padded on the right, from one forward pass.

    No token sees what stands behind it; where a causal model is found to do so, the pairs have one length.
    """
    inputs = pad_batch(tokenizer, [(prompt + completion)[:-1] for prompt, completion in pairs])
    width = inputs["input_ids"].shape[1]
    firsts = [max(len(prompt), 1) - 1 for prompt, _ in pairs]  # column that predicts the first token that counts
    keep = width - min(firsts)
    targets = torch.full((len(pairs), keep), -100, dtype=torch.long)
    for i, (prompt, completion) in enumerate(pairs):
        ids = (prompt + completion)[firsts[i] + 1 :]
        start = firsts[i] - min(firsts)
        targets[i, start : start + len(ids)] = torch.tensor(ids, dtype=torch.long)
    given = sent({**inputs, "targets": targets}, model.device)
    targets = given.pop("targets")
    return log_probabilities(forward(model, keep, use_cache=False, **given).logits, targets).sum(-1)


def _answered(model: Any, tokenizer: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Sums of log p ``[n]`` of an encoder-decoder, from one forward pass."""
    padded = pad_batch(tokenizer, [prompt for prompt, _ in pairs])
    inputs = sent({**padded, "targets": pad_targets([completion for _, completion in pairs])}, model.device)
    targets = inputs.pop("targets")
    decoder = decoder_inputs(model, targets)
    logits = forward(model, targets.shape[1], decoder_input_ids=decoder, use_cache=False, **inputs).logits
    return log_probabilities(logits, targets).sum(-1)
