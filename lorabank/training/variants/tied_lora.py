r"""Tied-LoRA (NAACL 2024, arXiv 2311.09578): one pair A, B for all modules of a shape, with two vectors for each.

    dW = s diag(v) B diag(u) A

A and B are tied over layers and over query, key and value; u and v are each site's own. All modules of one shape share
a pair here, since a pair has one shape. What is trained is the setting ``trains``: ``"all"`` (our reading of the
configuration that the paper recommends), ``"pair"`` (A and B alone, u = v = 1) or ``"vectors"`` (u and v alone: VeRA
with a scaling). Where B is trained it begins at 0 and v at 1, else v begins at 0, so that training begins at the base.
A is drawn as LoRA's. The paper's body was not at hand: this is our reading of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Variant, by_shape

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class TiedLora(Variant):
    """One pair A, B for all modules of a shape, and two vectors for each module."""

    paper: ClassVar[str | None] = "Tied-LoRA, arXiv 2311.09578"
    draws: ClassVar[bool] = True

    trains: Literal["all", "pair", "vectors"] = setting(
        "all", "What is trained: the tied pair and the vectors of each module, or one of the two."
    )

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A pair for each shape, and two vectors for each site."""
        return _Tied(context.sites, context.config.r, context.scaling, self.trains)

    def trained(self, sites: Sequence[Site], r: int) -> int:
        """A pair for each shape, and ``r + d_out`` numbers for each site."""
        pairs = sum(r * (d_out + d_in) for d_out, d_in in by_shape(sites))
        vectors = sum(r + site.d_out for site in sites)
        return pairs * (self.trains != "vectors") + vectors * (self.trains != "pair")


class _Tied(Parametrization):
    def __init__(self, sites: Sequence[Site], r: int, scaling: float, trains: str) -> None:
        super().__init__()
        device, shapes = sites[0].device, by_shape(sites)
        pair_of = {name: number for number, names in enumerate(shapes.values()) for name in names}
        self._pair_of = {site.name: pair_of[site.name] for site in sites}
        self._scaling = {site.name: scaling for site in sites}
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        for d_out, d_in in shapes:
            self.A.append(nn.init.kaiming_uniform_(torch.empty(r, d_in, device=device), a=math.sqrt(5)))
            B = torch.zeros(d_out, r, device=device)
            self.B.append(nn.init.kaiming_uniform_(B, a=math.sqrt(5)) if trains == "vectors" else B)
        begun = 0.0 if trains == "vectors" else 1.0
        self.u = nn.ParameterList(torch.ones(r, device=device) for _ in sites)
        self.v = nn.ParameterList(torch.full((site.d_out,), begun, device=device) for site in sites)
        fixed: dict[str, list[nn.ParameterList]] = {"pair": [self.u, self.v], "vectors": [self.A, self.B]}
        for part in fixed.get(trains, []):
            part.requires_grad_(False)

    def factors(self) -> LoraFactors:
        """diag(u) A and diag(v) B."""
        A, B = {}, {}
        for (site, pair), u, v in zip(self._pair_of.items(), self.u, self.v, strict=True):
            A[site] = u[:, None] * self.A[pair]
            B[site] = v[:, None] * self.B[pair]
        return LoraFactors(A, B, self._scaling)
