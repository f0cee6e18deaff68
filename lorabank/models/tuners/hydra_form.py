"""A module under a HydraLoRA adapter, which weighs its matrices B itself for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lorabank.models.bases.fused import Rows
from lorabank.models.tuners.hydra import HydraFactors


class HydraPart(NamedTuple):
    """An adapter on a module, or on a block of its rows."""

    factors: HydraFactors
    rows: Rows | None


class Hydra:
    """What an adapter adds to the answers of one module.

    Args:
        parts: The adapter of the whole module, or those of its blocks.
    """

    def __init__(self, parts: Sequence[HydraPart]) -> None:
        self._parts = parts

    def add(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the adapter.

        Args:
            out: ``W x + b [..., d_out]``, changed in place.
            x: ``[..., d_in]``.

        Returns:
            ``out``.
        """
        for factors, rows in self._parts:
            added = factors.added(x).to(out.dtype)
            if rows is None:
                out.add_(added)
            else:
                out[..., rows] += added
        return out
