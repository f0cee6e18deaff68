"""One adapter, in the form that every adapter has.

An adapter changes a linear module's weight ``W [d_out, d_in]`` by the delta weight

    (diag(g) - 1) W + s B A

with ``A [r, d_in]``, ``B [d_out, r]``, ``s = lora_alpha / r`` (``lora_alpha / sqrt(r)`` with rsLoRA, arXiv 2312.03732)
and a row gain ``g [d_out]``, which most adapters do not have: 1 then. DoRA has one (arXiv 2402.09353): its
``m / ||W + s BA||_row (W + s BA)`` is this form with ``g = m / ||W + s BA||_row`` and B's rows multiplied by g.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
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
        gain: Module name to ``g [d_out]``; a module that is not named has none.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    scaling: Mapping[str, float]
    gain: Mapping[str, Tensor] = field(default_factory=dict)

    def scaled(self, module: str) -> Tensor:
        """``s B [d_out, r]`` of one module."""
        return self.scaling[module] * self.B[module]

    def delta(self, module: str, weight: Tensor | None = None) -> Tensor:
        """The delta weight ``[d_out, d_in]`` of one module.

        Args:
            module: Its name.
            weight: W, the untouched base's; looked at only where the module has a gain.

        Raises:
            ValueError: The module has a gain and W is not given.
        """
        low = self.scaling[module] * (self.B[module] @ self.A[module])
        gain = self.gain.get(module)
        return low if gain is None else add_rows(low, gain - 1, weight)

    def single(self) -> LoraFactors:
        """The same with float64 rounded to float32."""
        return LoraFactors(_single(self.A), _single(self.B), self.scaling, _single(self.gain))


def without_zeros(factors: LoraFactors) -> LoraFactors:
    """The same adapter without components ``b_i a_i^T`` that are 0; a module without others or a gain is left out."""
    A, B = {}, {}
    for module, a in factors.A.items():
        b = factors.B[module]
        kept = (a != 0).any(1) & (b != 0).any(0)
        if module in factors.gain:
            kept[:1] = True
        if bool(kept.any()):
            A[module], B[module] = a[kept], b[:, kept]
    return LoraFactors(A, B, {module: factors.scaling[module] for module in A}, factors.gain)


@dataclass(frozen=True)
class DenseDelta:
    """Delta weights of full rank over the untouched base: module name to ``[d_out, d_in]``."""

    delta: Mapping[str, Tensor]

    def single(self) -> DenseDelta:
        """The same with float64 rounded to float32."""
        return DenseDelta(_single(self.delta))

    def factors(self) -> LoraFactors:
        """The same as ``B A`` of full rank: one of the two is the identity of the smaller side."""
        A, B = {}, {}
        for name, delta in self.delta.items():
            d_out, d_in = delta.shape
            one = torch.eye(min(d_out, d_in), dtype=delta.dtype, device=delta.device)
            A[name], B[name] = (delta, one) if d_out < d_in else (one, delta)
        return LoraFactors(A, B, dict.fromkeys(A, 1.0))


def _single(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class FactorShape:
    """What an adapter needs on one module: its rank, the module's ``d_in`` and ``d_out``, its scaling, and a gain."""

    r: int
    d_in: int
    d_out: int
    scaling: float
    gain: bool = False


def add_rows(low: Tensor, shift: Tensor, weight: Tensor | None) -> Tensor:
    """``diag(shift) W + low [d_out, d_in]``, in float32 or the wider dtype of ``low``, on its device.

    Args:
        low: The low-rank part, ``[d_out, d_in]``.
        shift: What is added to the rows of W, ``[d_out]``: a gain less 1.
        weight: W.

    Raises:
        ValueError: W is not given.
    """
    if weight is None:
        raise ValueError("an adapter with a row gain has a delta weight only beside the base's weight")
    wide = torch.promote_types(low.dtype, torch.float32)
    return low.to(wide).addcmul(shift.to(low.device, wide).unsqueeze(1), weight.detach().to(low.device, wide))
