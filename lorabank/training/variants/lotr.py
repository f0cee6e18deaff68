r"""LoTR (arXiv 2402.01376): the outer factors are shared by all modules of a shape, a small core is each one's own.

    dW_l = s L G_l R,    L [d_out, r] and R [r, d_in] shared, G_l [r, r]

which is a Tucker decomposition of the tensor of all dW_l. All are trained. G begins at 0, L and R begin normal, as in
the released code. There one pair serves query and value of every layer; here one pair serves each shape. The code
draws both from N(0, 1). Here R has the variance 1 / d_in, so that R x is as large as x: otherwise the first steps at
the learning rate of LoRA would be sqrt(d_in) times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.training.variants.base import Parametrization, Variant, by_shape

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class LoTR(Variant):
    """A core of r by r numbers for each module between two factors that all modules of a shape share."""

    paper: ClassVar[str | None] = "LoTR, arXiv 2402.01376"
    draws: ClassVar[bool] = True

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A pair for each shape, and a core for each site."""
        return _Tucker(context.sites, context.config.r, context.scaling)

    def trained(self, sites: Sequence[Site], r: int) -> int:
        """A pair for each shape, and a core for each site."""
        return sum(r * (d_out + d_in) for d_out, d_in in by_shape(sites)) + r * r * len(sites)


class _Tucker(Parametrization):
    def __init__(self, sites: Sequence[Site], r: int, scaling: float) -> None:
        super().__init__()
        device, shapes = sites[0].device, by_shape(sites)
        pair_of = {name: number for number, names in enumerate(shapes.values()) for name in names}
        self._pair_of = {site.name: pair_of[site.name] for site in sites}
        self._scaling = {site.name: scaling for site in sites}
        self.left = nn.ParameterList(torch.randn(d_out, r, device=device) for d_out, _ in shapes)
        self.right = nn.ParameterList(torch.randn(r, d_in, device=device) / math.sqrt(d_in) for _, d_in in shapes)
        self.core = nn.ParameterList(torch.zeros(r, r, device=device) for _ in sites)

    def factors(self) -> LoraFactors:
        """R, and L G."""
        A, B = {}, {}
        for (site, pair), core in zip(self._pair_of.items(), self.core, strict=True):
            A[site] = self.right[pair].clone()  # a layer keeps a parameter as it is, and several share this one
            B[site] = self.left[pair] @ core
        return LoraFactors(A, B, self._scaling)
