r"""Factors whose components of rank 1 have weights, and are pruned by them.

    ΔW = s B diag(e) A = s Σ_i e_i b_i a_i^T

A component with ``e_i = 0`` is left out of what is stored, so the ranks of the modules may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class PrunedVariant(Variant):
    """A variant in which every module begins at a higher rank, and components of all modules are pruned."""

    draws: ClassVar[bool] = True
    prunes: ClassVar[bool] = True

    start_ratio: float = setting(1.5, "Rank of every module at the start, as a multiple of the mean rank --r.", ge=1)

    def rank(self, r: int) -> int:
        """That of the start."""
        return math.ceil(self.start_ratio * r)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """A, B and e of the start."""
        return self.rank(r) * (d_out + d_in + 1)

    def drawn(self, context: TrainContext, draw: Callable[[Tensor], Tensor]) -> tuple[LoraFactors, dict[str, Tensor]]:
        """A and B by site with the rank and the scaling of the start, and e = 0.

        Args:
            context: What is adapted.
            draw: Gives the values of an empty matrix; it is asked for A and then B, site by site.
        """
        config, r = context.config, self.rank(context.config.r)
        scaling = lora_scaling(r, config.lora_alpha, use_rslora=config.use_rslora)
        A, B, weights = {}, {}, {}
        for site in context.sites:
            A[site.name] = draw(torch.empty(r, site.d_in, device=site.device))
            B[site.name] = draw(torch.empty(site.d_out, r, device=site.device))
            weights[site.name] = torch.zeros(r, device=site.device)
        return LoraFactors(A, B, dict.fromkeys(A, scaling)), weights


class Components(FreeFactors):
    """A, B and e are trained.

    Args:
        start: A ``[r, d_in]`` and B ``[d_out, r]`` by site, with the scaling that the variant computes with.
        weights: e ``[r]`` by site.
        scaling: Of the stored adapter, in which that of the variant is expressed.
    """

    def __init__(self, start: LoraFactors, weights: Mapping[str, Tensor], scaling: float) -> None:
        super().__init__(LoraFactors(start.A, start.B, dict.fromkeys(start.A, scaling)))
        self._ratio = [own / scaling for own in start.scaling.values()]
        self.e = nn.ParameterList(weights[site] for site in start.A)

    @property
    def prunes(self) -> bool:
        """Components of weight 0 are left out."""
        return True

    def factors(self) -> LoraFactors:
        """A and B diag(e)."""
        free = super().factors()
        weighed = zip(free.B.items(), self.e, self._ratio, strict=True)
        return replace(free, B={site: b * (ratio * e) for (site, b), e, ratio in weighed})


class PrunedComponents(Components):
    """The same, pruned to a number of components.

    Args:
        start: See `Components`.
        weights: See `Components`.
        scaling: See `Components`.
    """

    kept: Tensor

    def __init__(self, start: LoraFactors, weights: Mapping[str, Tensor], scaling: float) -> None:
        super().__init__(start, weights, scaling)
        self.register_buffer("kept", torch.cat([torch.ones_like(e, dtype=torch.bool) for e in self.e]))

    @torch.no_grad()
    def prune(self, scores: Tensor, count: int) -> None:
        """Set the weights of all but ``count`` components to 0.

        Args:
            scores: ``[sum r]`` over the components of all sites; the lowest go.
            count: How many are left.
        """
        lowest = scores.argsort(stable=True)[: len(scores) - count]
        self.kept.fill_(True)
        self.kept[lowest] = False
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Set the weights of the components that were pruned last to 0 again."""
        for e, kept in zip(self.e, self.kept.split([len(e) for e in self.e]), strict=True):
            e.masked_fill_(~kept, 0.0)
