r"""An adapter with a row gain as PEFT stores one, and back: DoRA (arXiv 2402.09353, equation 5).

PEFT answers with ``W' = diag(m / n) (W + s B' A)``, where ``n_i = ||W + s B' A||_2`` of row i and m is the tensor
``lora_magnitude_vector``. That is the row gain ``g = m / n`` and ``B = diag(g) B'``, and the other way round
``B' = diag(1 / g) B`` and ``m = g n``: any adapter with a gain is one DoRA adapter, a sum of several too, unless g is
0 in a row where B is not.

Source of PEFT's form: peft/tuners/lora/dora.py, `DoraLinearLayer` of 0.21.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import DataError, IncompatibleError

Weight = Callable[[str], Tensor]
"""Module name to the untouched base's weight ``[d_out, d_in]``."""


def as_dora(factors: LoraFactors, weight: Weight) -> tuple[LoraFactors, dict[str, Tensor]]:
    """PEFT's factors ``A, B'`` without a gain, and m ``[d_out]`` of every module, float32.

    PEFT knows DoRA for all modules of an adapter or for none: a module without a gain has ``g = 1``.

    Raises:
        IncompatibleError: No m gives the adapter: a row's gain is 0 and its B is not, or the row to which the gain
            belongs is 0.
    """
    B, magnitude = {}, {}
    for module, b in factors.B.items():
        gain = factors.gain.get(module, torch.ones(len(b), device=b.device)).double()
        off = gain == 0
        if bool(b[off].any()):
            raise _no_dora(module, "a row that its gain switches off has a low-rank part")
        B[module] = (b.double() / gain.where(~off, 1.0).unsqueeze(1)).to(b.dtype)
        norm = _row_norms(factors.A[module], B[module], factors.scaling[module], weight(module))
        if bool((norm == 0).any()):
            raise _no_dora(module, "a row of the adapted weight is zero, which has no direction")
        magnitude[module] = (gain * norm).float()
    return LoraFactors(factors.A, B, factors.scaling), magnitude


def from_dora(factors: LoraFactors, magnitude: Mapping[str, Tensor], weight: Weight) -> LoraFactors:
    """The adapter that PEFT makes of ``A, B'`` and m.

    Args:
        factors: A, B' and the scaling.
        magnitude: Module name to m ``[d_out]``, of every module.
        weight: Gives W.

    Raises:
        DataError: A row of ``W + s B' A`` is zero, so that PEFT's answers are not finite.
    """
    B, gain = {}, {}
    for module, b in factors.B.items():
        norm = _row_norms(factors.A[module], b, factors.scaling[module], weight(module))
        if bool((norm == 0).any()):
            raise DataError(
                f"the DoRA adapter divides by zero: a row of the adapted weight of {module!r} is zero",
                unchanged="nothing was changed",
            )
        ratio = magnitude[module].to(norm) / norm
        B[module], gain[module] = (b.double() * ratio.unsqueeze(1)).to(b.dtype), ratio.float()
    return LoraFactors(factors.A, B, factors.scaling, gain)


def _row_norms(a: Tensor, b: Tensor, scaling: float, weight: Tensor) -> Tensor:
    """``||W + s B A||_2`` of each row, ``[d_out]`` in float64, where the factors lie."""
    adapted = torch.addmm(weight.detach().to(a.device, torch.float64), b.double(), a.double(), alpha=scaling)
    norms: Tensor = adapted.norm(dim=1)
    return norms


def _no_dora(module: str, reason: str) -> IncompatibleError:
    return IncompatibleError(
        f"the adapter is not a DoRA adapter of PEFT on {module!r}: {reason}",
        hint="other weights, or a composition that leaves out the adapters with a gain",
        unchanged="nothing was written",
    )
