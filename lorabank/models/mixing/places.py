"""Where a batch's rows stand in the inputs of adapted modules.

Adapters per row can be added only where it is known which part of a module's input is which row's. That is usually the
first dimension, but time-major models have the rows in the second, some flatten rows and tokens into one, an expert
sees the tokens that were sent to it, and a table of relative positions belongs to no row. So it is looked at: of three
rows one is replaced at a time, and what changes in a module's input is that row's part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorabank.models.bases.sites import rows_of
from lorabank.models.tasks.probing import can_be_probed, outputs, random_rows, undisturbed

_ROWS, _TOKENS = 3, 8
_CHANGED = 1e-3
"""Of the largest input; equal rows in passes of one shape give equal numbers."""


@dataclass(frozen=True)
class Place:
    """Where the rows are in a module's input.

    Attributes:
        axis: The dimension that counts them.
        block: Whether each of them has several neighbouring entries there (its tokens, its heads).
    """

    axis: int = 0
    block: bool = False

    def by_rows(self, x: Tensor, count: int) -> Tensor:
        """A module's input (or output) ``[..., d]`` as ``[n, tokens, d]``, contiguous: a view where that can be.

        Raises:
            UnplacedError: It is not that of n rows.
        """
        size = x.shape[self.axis] if x.dim() > self.axis + 1 else 0
        if not size or (size % count if self.block else size != count):
            raise UnplacedError(f"adapters were chosen for {count} rows, a module's input is {tuple(x.shape)}")
        return x.movedim(self.axis, 0).reshape(count, -1, x.shape[-1]).contiguous()

    def put_back(self, rows: Tensor, to: Tensor) -> None:
        """Write ``by_rows(to, n)``, where that was a copy, to where it came from."""
        moved = to.movedim(self.axis, 0)
        moved.copy_(rows.view(moved.shape))


FIRST = Place()


class UnplacedError(Exception):
    """A module's input does not show which part of it is which row's."""


class ByRows:
    """What a module reads and answers, row by row of a batch.

    Args:
        place: Where the rows are; None where that is unknown.
        x: ``[..., d_in]``.
        out: ``[..., d_out]``.
        n: How many rows the batch has.
        chosen: What was chosen for each of them, for the message.

    Attributes:
        inputs: ``[n, tokens, d_in]``.
        sums: ``[n, tokens, d_out]``, to be changed in place; `put_back` writes it into ``out``.

    Raises:
        UnplacedError: There are several rows, and the input is not known to be made of n parts.
    """

    def __init__(self, place: Place | None, x: Tensor, out: Tensor, n: int, chosen: str) -> None:
        place = place if n > 1 else FIRST
        if place is None:
            raise UnplacedError(f"{chosen}, and the rows of a module are unknown")
        self._place, self._whole = place, out if n > 1 else out[None]
        self.inputs = place.by_rows(x if n > 1 else x[None], n)
        self.sums = place.by_rows(self._whole, n)

    def put_back(self) -> None:
        """Write the sums to where they came from, if they are a copy: the rows are not neighbours there."""
        if self.sums.data_ptr() != self._whole.data_ptr():
            self._place.put_back(self.sums, self._whole)


def find_places(model: Any, layers: Mapping[str, nn.Module]) -> dict[str, Place] | None:
    """The place of the rows in the input of each module; None where a module's input is not made of rows.

    Args:
        model: A model of transformers; for another module the first dimension is taken.
        layers: The modules that are adapted, by name, changing nothing now.

    Returns:
        Without the modules that no pass went through; None also where a model computes with a module's weight and
        passes the module by, which only a merged weight reaches.
    """
    if not can_be_probed(model):
        return dict.fromkeys(layers, FIRST)
    rows = random_rows(model, [_TOKENS] * (2 * _ROWS), seed=2)
    answers = random_rows(model, [_TOKENS - 1] * (2 * _ROWS), seed=3)
    seen: list[dict[str, list[Tensor]]] = []
    with undisturbed(model):
        for replaced in (None, *range(_ROWS - 1)):
            chosen = [i + _ROWS * (i == replaced) for i in range(_ROWS)]
            with _watched(layers) as inputs:
                try:
                    outputs(model, [rows[i] for i in chosen], "right", [answers[i] for i in chosen])
                except Exception:  # whatever a model raises that needs more than token ids
                    return None
            seen.append(inputs)
    found: dict[str, Place] = {}
    for name in layers:
        before, *after = (inputs[name] for inputs in seen)
        if any(len(calls) != len(before) for calls in after):
            return None
        places = {_place(*calls) for calls in zip(before, *after, strict=True)}
        if len(places) > 1 or None in places:
            return None
        if not places and getattr(layers[name], "weight_read", False):
            return None
        found.update((name, place) for place in places if place)
    return found


@contextmanager
def _watched(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the inputs of every call of every module during a block."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(name: str) -> Any:
        return lambda module, args: inputs[name].append(rows_of(module, args[0]).detach().clone())

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _place(before: Tensor, *after: Tensor) -> Place | None:
    """The place that the changes fit: row i was replaced in ``after[i]``."""
    if before.dim() < 2 or any(one.shape != before.shape for one in after):
        return None
    for axis in range(before.dim() - 1):
        size = before.shape[axis]
        for block in (False, True):
            if (size % _ROWS if block else size != _ROWS) or (block and size == _ROWS):
                continue
            share = size // _ROWS
            wanted = torch.arange(size, device=before.device) // share
            if all(_changes(before, one, axis, wanted == i) for i, one in enumerate(after)):
                return Place(axis, block)
    return None


def _changes(before: Tensor, after: Tensor, axis: int, wanted: Tensor) -> bool:
    """Whether exactly the wanted entries along an axis changed."""
    differ = (after - before).abs().movedim(axis, 0).flatten(1).amax(1)
    least = _CHANGED * before.abs().max() if before.is_floating_point() else 0  # tokens are names
    return bool(((differ > least) == wanted).all())
