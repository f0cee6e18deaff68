r"""XGBLoRA (arXiv 2410.19694): gradient boosting, a LoRA of rank 1 in every round, on a part of the layers.

    W_k = W_{k-1} + s b_k a_k,    k = 1..r,

where round k trains ``a_k [1, d_in]`` and ``b_k [d_out, 1]`` of layers that are drawn for it, with an optimizer of
their own, and everything before it is frozen. (section 4 of the paper: a booster is trained, merged, and the next is
drawn.) The sum of the boosters has rank r, the number of rounds, so they stand side by side in one adapter of
``--r``: nothing has to be merged into the weight, and a step costs what LoRA's costs.

Our reading of the paper, whose number of layers in a round we could not verify.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Step, Variant
from lorabank.training.variants.windows import drawn_seed, over

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class XgbLora(Variant):
    """Gradient boosting: each of r rounds trains a LoRA of rank 1 on a part of the layers."""

    paper: ClassVar[str | None] = "XGBLoRA, arXiv 2410.19694"
    prunes: ClassVar[bool] = True

    layers: float = setting(0.5, "Part of the transformer layers that a round trains, drawn for each.", gt=0, le=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """One booster for each rank, whose a begins as a row of the start's A."""
        return _Boosters(start.begin(context), context.sites, self.layers)


class _Boosters(Parametrization):
    def __init__(self, start: LoraFactors, sites: Sequence[Site], share: float) -> None:
        super().__init__()
        self._scaling = start.scaling
        self._depths = [site.depth for site in sites]
        self._share = share
        self._seed = drawn_seed()
        self._rounds = len(start.A[sites[0].name])
        self._trained: tuple[int, frozenset[int | None]] | None = None  # a round and its layers; None is all
        self.a = nn.ParameterList(row[None].clone() for A in start.A.values() for row in A)
        self.b = nn.ParameterList(column[:, None].clone() for B in start.B.values() for column in B.T)

    @property
    def prunes(self) -> bool:
        """The boosters of layers that a round did not train are zero, and are not stored."""
        return True

    def factors(self) -> LoraFactors:
        """All boosters side by side; a gradient goes only to those that are trained now."""
        A, B = {}, {}
        for k, site in enumerate(self._scaling):
            a, b = [], []
            for one in range(self._rounds):
                trained = self._trained is None or (self._trained[0] == one and self._depths[k] in self._trained[1])
                pair = self.a[k * self._rounds + one], self.b[k * self._rounds + one]
                a.append(pair[0] if trained else pair[0].detach())
                b.append(pair[1] if trained else pair[1].detach())
            A[site], B[site] = torch.cat(a), torch.cat(b, 1)
        return LoraFactors(A, B, self._scaling)

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """The round of the step."""
        self._choose(over(step.number - 1, step.total, self._rounds))

    def after_step(self, step: Step) -> None:
        """The round of the next step."""
        self._choose(over(step.number, step.total, self._rounds))

    def _choose(self, one: int) -> None:
        depths = list(dict.fromkeys(self._depths))
        generator = torch.Generator().manual_seed(self._seed + one)
        drawn = torch.randperm(len(depths), generator=generator)[: math.ceil(self._share * len(depths))]
        self._trained = one, frozenset(depths[int(k)] for k in drawn)
