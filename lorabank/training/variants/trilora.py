r"""TriLoRA (arXiv 2405.11236): the delta weight is trained in the form of a compact singular value decomposition.

    dW = s U diag(e) V^T,    U [d_out, r], e [r], V^T [r, d_in]

All three are trained. U and V begin with orthonormal columns, e at 0, so that training begins at the base and all of
them can move from the second step on. Nothing holds U and V orthonormal afterwards. It is AdaLoRA's product without
its penalty and its allocation of ranks. The paper's body was not at hand: this is our reading of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.training.variants.base import FreeFactors, Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class TriLora(Variant):
    """Three factors in the form of a compact singular value decomposition, all trained."""

    paper: ClassVar[str | None] = "TriLoRA, arXiv 2405.11236"
    draws: ClassVar[bool] = True

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """More columns than can be orthonormal."""
        if r <= min(site.d_out, site.d_in):
            return None
        return ConfigError(
            f"{site.name} has only {min(site.d_out, site.d_in)} singular values, and the variant needs {r}",
            hint="lower --r",
            unchanged="nothing was changed",
        )

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Orthonormal U and V, and e at 0.

        Raises:
            ConfigError: See `refusal`.
        """
        self.check_sites(context)
        r, A, B = context.config.r, {}, {}
        for site in context.sites:
            A[site.name] = nn.init.orthogonal_(torch.empty(r, site.d_in, device=site.device))
            B[site.name] = nn.init.orthogonal_(torch.empty(site.d_out, r, device=site.device))
        return SingularForm(LoraFactors(A, B, dict.fromkeys(context.targets, context.scaling)))

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of LoRA and one for each rank."""
        return super().parameters(d_out, d_in, r) + r


class SingularForm(FreeFactors):
    """U, e and V.

    Args:
        start: V^T as A and U as B.

    Attributes:
        e: ``[r]`` of each site.
    """

    def __init__(self, start: LoraFactors) -> None:
        super().__init__(start)
        self.e = nn.ParameterList(rows.new_zeros(len(rows)) for rows in start.A.values())

    def factors(self) -> LoraFactors:
        """V^T and U diag(e)."""
        free = super().factors()
        B = {site: e * b for (site, b), e in zip(free.B.items(), self.e, strict=True)}
        return LoraFactors(free.A, B, free.scaling)
