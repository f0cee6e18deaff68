"""Adapters into their slots: on a GPU in one flat copy, whatever the number of modules.

A slot is some rows of A and of B^T of each module, hundreds of small places. A copy to a GPU for each takes longer to
order than to do, and memory that can be paged out is copied twice. So the numbers of a file are written once, in the
dtype of the slots, into a pinned buffer that is laid out like a slot; that goes over in one piece, and from there to
the places in one call on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack


class SlotFiller:
    """Fills the slots of a stack.

    Args:
        stack: Its places.
        flat: Whether by one copy of a slot; default: where the stack lies on a GPU.
    """

    def __init__(self, stack: AdapterStack, *, flat: bool | None = None) -> None:
        self._stack = stack
        self._flat = flat
        self._held: tuple[Tensor, Tensor] | None = None
        self._over: torch.cuda.Event | None = None

    def fill(self, slot: int, factors: LoraFactors, *, shared: bool) -> None:
        """Copy an adapter into a slot.

        Args:
            slot: Its number in the stack.
            factors: The adapter, on a CPU.
            shared: Whether the slot is one that any adapter fits: the scaling goes into B, rows and modules that the
                adapter has not become 0, and gains 1.
        """
        places = [place for place in self._places(slot) if shared or place[0] in factors.A]
        targets, buffers = [(A, B) for _, A, B in places], None
        if self._is_flat(targets):
            buffers = self._buffers(targets)
            targets = _like(buffers[0], targets)
        for (module, *_), (A, B) in zip(places, targets, strict=True):
            r = len(factors.A[module]) if module in factors.A else 0
            if r:
                A[:r].copy_(factors.A[module])
                b = factors.B[module]
                B[:r].copy_((b * factors.scaling[module] if shared else b).mT)
            A[r:], B[r:] = 0, 0
        if buffers is not None:
            self._send(buffers, [part for _, A, B in places for part in (A, B)])
        self._put_gains(slot, factors, shared=shared)

    def _places(self, slot: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Module, its rows ``[r, d_in]`` of A and ``[r, d_out]`` of B^T."""
        for module, factors in self._stack.modules.items():
            rows = self._rows[module].get(slot)
            if rows is not None:
                yield module, factors.A[rows], factors.B.mT[rows]

    @cached_property
    def _rows(self) -> dict[str, dict[int, slice]]:
        """Module to slot to its rows; read once, since to ask a device is to wait for it."""
        found: dict[str, dict[int, slice]] = {}
        for module, factors in self._stack.modules.items():
            own = found[module] = {}
            for row, slot in enumerate(factors.owner.tolist()):
                own[slot] = slice(own[slot].start if slot in own else row, row + 1)
        return found

    def _put_gains(self, slot: int, factors: LoraFactors, *, shared: bool) -> None:
        for module, stacked in self._stack.modules.items():
            if stacked.gain is not None and (shared or module in factors.A):
                gain = factors.gain.get(module)
                stacked.gain[slot] = 1.0 if gain is None else gain.to(stacked.gain)

    def _is_flat(self, places: list[tuple[Tensor, Tensor]]) -> bool:
        return bool(places) and (places[0][0].is_cuda if self._flat is None else self._flat)

    def _buffers(self, places: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """A flat block on the host and one on the device, as large as the places; the last copy out is over."""
        size, like = sum(A.numel() + B.numel() for A, B in places), places[0][0]
        if self._held is None or self._held[0].numel() < size:
            host = torch.empty(size, dtype=like.dtype, pin_memory=like.is_cuda)
            self._held = host, torch.empty(size, dtype=like.dtype, device=like.device)
        if self._over is not None:
            self._over.synchronize()
        return self._held[0][:size], self._held[1][:size]

    def _send(self, buffers: tuple[Tensor, Tensor], places: list[Tensor]) -> None:
        host, device = buffers
        device.copy_(host, non_blocking=True)
        if device.is_cuda:
            self._over = torch.cuda.Event()
            self._over.record()
        torch._foreach_copy_(places, [part for pair in _like(device, _pairs(places)) for part in pair])


def _like(flat: Tensor, places: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """A flat block as tensors of the places' shapes, one behind the other."""
    parts = flat.split([part.numel() for pair in places for part in pair])
    shaped = [part.view(place.shape) for part, place in zip(parts, (p for pair in places for p in pair), strict=True)]
    return _pairs(shaped)


def _pairs(parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parts[::2], parts[1::2], strict=True))
