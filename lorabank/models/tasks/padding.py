"""Which rows may share a forward pass: what a row gives must not depend on the rows beside it.

Padding is meant to change nothing, and in most models it does not. It does where no mask keeps it out (a recurrent
state, a convolution or a Fourier transform over the tokens), or where it shifts positions that cannot be told. What a
model does is measured once, on two short rows: each by itself, and both in one batch, padded on either side. What
training, scoring, generation and features put into one pass all follows from that one measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorabank.models.tasks.batches import takes_positions
from lorabank.models.tasks.encoding import budget_batches, cut_batches
from lorabank.models.tasks.probing import can_be_probed, outputs, random_rows, undisturbed

_LONG, _SHORT = 21, 8
_ANSWERS = (7, 4)
_LEAK = 1e-4
"""Of the difference between two tokens or texts; rounding is a hundred times smaller in float32."""
_ROUNDING = 16
_PADDED = ("input_ids", "attention_mask", "position_ids")

Side = Literal["left", "right"]
Inputs = dict[str, Tensor]
Length = int | tuple[int, int]
"""Tokens of a row; of an encoder-decoder's prompt and answer where both are padded."""


@dataclass(frozen=True)
class Padding:
    """What may be around a row in a batch without a change in what the row gives.

    Attributes:
        left: Padding in front of it; measured for causal language models alone, which are padded so.
        right: Padding behind it.
        beside: Other rows of its length.
    """

    left: bool
    right: bool
    beside: bool


_FREE = Padding(True, True, True)
_ALONE = Padding(False, False, False)
_known: WeakKeyDictionary[Any, Padding] = WeakKeyDictionary()


def padding_of(model: Any) -> Padding:
    """What padding does in a model; measured when it is first asked for, in the adapters' present state.

    A model that cannot be passed the two rows gets every row alone.
    """
    if model not in _known:
        _known[model] = _measured(model) if can_be_probed(model) else _FREE
    return _known[model]


def row_batches(model: Any, lengths: Sequence[Length], batch_size: int, side: Side = "right") -> list[list[int]]:
    """Row numbers in batches of similar length, longest first, in which no row changes what another gives."""
    return sorted_batches(model, _longest_first(lengths), lengths, batch_size, side)


def sorted_batches(
    model: Any, order: Sequence[int], lengths: Sequence[Length], batch_size: int, side: Side = "right"
) -> list[list[int]]:
    """Rows in an order sorted by length, cut into batches in which no row changes what another gives."""
    if len(order) < 2 or batch_size < 2:
        return cut_batches(order, lengths, batch_size)
    padding = padding_of(model)
    return cut_batches(order, lengths, batch_size if padding.beside else 1, equal=not getattr(padding, side))


def prompt_batches(
    model: Any, lengths: Sequence[int], batch_size: int, *, tokens: int | None = None, more: int = 0
) -> list[list[int]]:
    """As `row_batches`, for prompts that end in one column.

    A model for which `takes_positions` is false cannot be told where a padded prompt begins once it reads on behind
    it: its batches hold prompts of one length.

    Args:
        model: A causal language model.
        lengths: Tokens of each prompt.
        batch_size: Prompts of a batch.
        tokens: Maximum tokens of a batch, padding included, in place of ``batch_size`` (a batch has one row at least).
        more: Tokens that each row has beyond its prompt.
    """
    several = len(lengths) > 1 and (batch_size > 1 or tokens is not None)
    padding = padding_of(model) if several else _FREE
    equal = not (takes_positions(model) and padding.left)
    if tokens is None or not padding.beside:
        return cut_batches(_longest_first(lengths), lengths, batch_size if padding.beside else 1, equal=equal)
    widths = [length + more for length in lengths]
    return budget_batches(_longest_first(lengths), widths, tokens, equal=equal)


def passes(model: Any, lengths: Sequence[Length]) -> list[list[int]]:
    """The rows of one training batch in parts that may share a pass: most often one, in order."""
    if len(lengths) < 2:
        return [list(range(len(lengths)))]
    padding = padding_of(model)
    if padding.beside and (padding.right or len(set(lengths)) == 1):
        return [list(range(len(lengths)))]
    return row_batches(model, lengths, len(lengths))


def mean_over_passes(loss: Callable[[nn.Module, Inputs], Tensor], model: nn.Module, inputs: Inputs) -> Tensor:
    """A batch's mean loss, its rows in as many passes as the model needs.

    Args:
        loss: Mean over the labelled terms of some rows.
        model: The model, or a wrapper for several devices around it.
        inputs: ``input_ids`` and ``attention_mask`` ``[n, s]``, ``labels`` with -100 for no term, and other tensors
            with n rows.
    """
    inner: Any = getattr(model, "module", model)
    if len(inputs["labels"]) < 2 or padding_of(inner) == _FREE:
        return loss(model, inputs)
    lengths = inputs["attention_mask"].sum(-1).tolist()
    if inner.config.is_encoder_decoder and inputs["labels"].dim() == 2:
        lengths = list(zip(lengths, (inputs["labels"] >= 0).sum(-1).tolist(), strict=True))
    rows = passes(inner, lengths)
    parts = [_unpadded(inputs, part) for part in rows] if len(rows) > 1 else [inputs]
    terms = [int((part["labels"] >= 0).sum()) for part in parts]
    if len(parts) == 1 or not any(terms):
        return loss(model, inputs)
    means = [loss(model, part) * count for part, count in zip(parts, terms, strict=True) if count]
    return torch.stack(means).sum() / sum(terms)


def _longest_first(lengths: Sequence[Length]) -> list[int]:
    """The order that shows the peak of memory first."""
    return sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)


def _unpadded(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    """Some rows of equal length without the columns that all of them pad."""
    part = {name: tensor[list(rows)] for name, tensor in inputs.items()}
    kept = part["attention_mask"].bool().any(0)
    if part["labels"].dim() == 2:
        part["labels"] = part["labels"][:, (part["labels"] >= 0).any(0)]
    return part | {name: part[name][:, kept] for name in _PADDED if name in part}


def _measured(model: Any) -> Padding:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LONG
    longest = min(_LONG, limit) if limit > 0 else _LONG
    rows = random_rows(model, (longest, max(1, longest * _SHORT // _LONG), longest), seed=0)
    answers = random_rows(model, (*_ANSWERS, _ANSWERS[0]), seed=1)
    both_sides = model.can_generate() and not model.config.is_encoder_decoder
    with undisturbed(model):
        try:
            alone = [outputs(model, rows[i : i + 1], "right", answers[i : i + 1]) for i in range(2)]
        except Exception:  # whatever a model raises that needs more than token ids
            return _ALONE

        def agree(chosen: Sequence[int], side: Side) -> list[bool]:
            """Whether the first rows give in a batch what they give alone."""
            try:
                found = outputs(model, [rows[i] for i in chosen], side, [answers[i] for i in chosen])
            except Exception:  # rows of these lengths do not go together at all
                return [False, False]
            return [_agrees(found, alone, i, side) for i in chosen if i < 2]

        right = agree((0, 1), "right")
        left = agree((0, 1), "left") if both_sides else right
        # the longer row has no padding: only the other one can have changed it
        beside = right[0] or left[0] or agree((0, 2), "right")[0]
    return Padding(all(left), all(right), beside)


def _agrees(found: Sequence[Tensor], alone: Sequence[Sequence[Tensor]], row: int, side: Side) -> bool:
    """Whether a row's outputs among others are those that it has alone, but for rounding."""
    for k, there in enumerate(found):
        here = alone[row][k][0].float()
        own = there[row].float()
        if here.dim() > 1:  # one vector per token
            own = own[: len(here)] if side == "right" else own[-len(here) :]
        every = torch.cat([one[k].float().flatten(0, -2) for one in alone])
        if not same_numbers(own, here, every, torch.finfo(there.dtype).eps):
            return False
    return bool(found)


def same_numbers(found: Tensor, wanted: Tensor, every: Tensor | None = None, eps: float = 2**-23) -> bool:
    """Whether two float32 results ``[..., d]`` are one but for rounding.

    Args:
        found: The one.
        wanted: The other.
        every: Results ``[m, d]`` of several tokens or texts, by whose differences this one is judged; the second where
            it is not given.
        eps: Of the precision in which they were computed.
    """
    every = wanted.flatten(0, -2) if every is None else every
    finite = every.isfinite().all(0)  # labels that the chosen head does not have are -inf
    if found.shape != wanted.shape or not bool(finite.any()):
        return False
    every = every[:, finite]
    differ = (every - every.mean(0)).abs().max()
    rounding = _ROUNDING * eps * every.abs().max()
    return bool((found - wanted)[..., finite].abs().max() <= _LEAK * differ + rounding)
