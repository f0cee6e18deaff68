"""Adapters into their slots: on a GPU in one flat copy, whatever the number of modules.

A slot is some rows of A and columns of B of each module, hundreds of small places. A copy to a GPU for each takes
longer to order than to do, and memory that can be paged out is copied twice. So the numbers of a file are written
once, in the dtype of the slots, into a pinned buffer; that goes over in one piece, and from there to the places on the
device. B lies there as in the file, and is transposed on the device too: on the host that costs more than the
conversion.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack

_Pairs = list[tuple[Tensor, Tensor]]
"""Of each module its rows ``[r, d_in]`` of A and columns ``[d_out, r]`` of B."""


class _Staging(NamedTuple):
    """A flat block on the host and one on the device, and both as pairs."""

    host: Tensor
    device: Tensor
    written: _Pairs
    arrived: _Pairs


class _Slot(NamedTuple):
    modules: list[str]
    places: _Pairs
    staging: _Staging | None


class SlotFiller:
    """Fills the slots of a stack.

    Args:
        stack: Its places.
        flat: Whether by one copy of a slot; default: where the stack lies on a GPU.
    """

    def __init__(self, stack: AdapterStack, *, flat: bool | None = None) -> None:
        self._stack = stack
        self._flat = flat
        self._known: dict[int, _Slot] = {}
        self._blocks: tuple[Tensor, Tensor] | None = None
        self._over: torch.cuda.Event | None = None

    def fill(self, slot: int, factors: LoraFactors, *, shared: bool) -> None:
        """Copy an adapter into a slot.

        Args:
            slot: Its number in the stack.
            factors: The adapter, on a CPU.
            shared: Whether the slot is one that any adapter fits: the scaling goes into B, rows and modules that the
                adapter has not become 0, and gains 1.
        """
        if slot not in self._known:
            self._known[slot] = self._slot([name for name in self._stack.modules if shared or name in factors.A], slot)
        modules, places, staging = self._known[slot]
        if self._over is not None:
            self._over.synchronize()  # the buffer was read
        for module, (A, B) in zip(modules, staging.written if staging else places, strict=True):
            r = len(factors.A[module]) if module in factors.A else 0
            if r:
                A[:r].copy_(factors.A[module])
                B[:, :r].copy_(factors.B[module] * factors.scaling[module] if shared else factors.B[module])
            if r < len(A):
                A[r:], B[:, r:] = 0, 0
        if staging:
            self._send(staging, places)
        for module, stacked in self._stack.modules.items():
            if stacked.gain is not None and (shared or module in factors.A):
                gain = factors.gain.get(module)
                stacked.gain[slot] = 1.0 if gain is None else gain.to(stacked.gain)
        if not shared:
            del self._known[slot]  # it is filled once, and takes other modules than the next

    def _slot(self, modules: list[str], slot: int) -> _Slot:
        own = [module for module in modules if slot in self._rows[module]]
        stacked = [(self._stack.modules[module], self._rows[module][slot]) for module in own]
        places = [(factors.A[rows], factors.B[:, rows]) for factors, rows in stacked]
        flat = bool(places) and (places[0][0].is_cuda if self._flat is None else self._flat)
        return _Slot(own, places, self._staging(places) if flat else None)

    @cached_property
    def _rows(self) -> dict[str, dict[int, slice]]:
        """Module to slot to its rows; read once, since to ask a device is to wait for it."""
        found: dict[str, dict[int, slice]] = {}
        for module, factors in self._stack.modules.items():
            own = found[module] = {}
            for row, slot in enumerate(factors.owner.tolist()):
                own[slot] = slice(own[slot].start if slot in own else row, row + 1)
        return found

    def _staging(self, places: _Pairs) -> _Staging:
        """As large as the places; all slots take turns in the same memory."""
        size, like = sum(A.numel() + B.numel() for A, B in places), places[0][0]
        if self._blocks is None or len(self._blocks[0]) < size:
            host = torch.empty(size, dtype=like.dtype, pin_memory=like.is_cuda)
            self._blocks = host, torch.empty(size, dtype=like.dtype, device=like.device)
        host, device = self._blocks[0][:size], self._blocks[1][:size]
        return _Staging(host, device, _like(host, places), _like(device, places))

    def _send(self, staging: _Staging, places: _Pairs) -> None:
        staging.device.copy_(staging.host, non_blocking=True)
        if staging.device.is_cuda:
            self._over = torch.cuda.Event()
            self._over.record()
        for there, parts in zip(zip(*places, strict=True), zip(*staging.arrived, strict=True), strict=True):
            torch._foreach_copy_(there, parts)  # all A in a few kernels, then all B


def _like(flat: Tensor, places: _Pairs) -> _Pairs:
    """A flat block as tensors of the places' shapes, one behind the other."""
    parts = iter(flat.split([part.numel() for pair in places for part in pair]))
    return [(next(parts).view(A.shape), next(parts).view(B.shape)) for A, B in places]
