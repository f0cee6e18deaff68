"""One adapter, in the form that every adapter has.

An adapter changes a linear module's weight ``W [d_out, d_in]`` by the delta weight ``s B A`` with ``A [r, d_in]``,
``B [d_out, r]`` and ``s = lora_alpha / r`` (``lora_alpha / sqrt(r)`` with rsLoRA, arXiv 2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


def lora_scaling(r: int, lora_alpha: float, *, use_rslora: bool = False) -> float:
    """The factor s before ``B A``."""
    return lora_alpha / math.sqrt(r) if use_rslora else lora_alpha / r


@dataclass(frozen=True)
class LoraFactors:
    """One adapter.

    Attributes:
        A: Module name to ``lora_A [r, d_in]``.
        B: Module name to ``lora_B [d_out, r]``.
        scaling: Module name to s.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    scaling: Mapping[str, float]

    def delta(self, module: str) -> Tensor:
        """The delta weight ``s B A [d_out, d_in]`` of one module."""
        return self.scaling[module] * (self.B[module] @ self.A[module])


@dataclass(frozen=True)
class FactorShape:
    """What an adapter needs on one module: its rank, the module's ``d_in`` and ``d_out``, and its scaling."""

    r: int
    d_in: int
    d_out: int
    scaling: float
