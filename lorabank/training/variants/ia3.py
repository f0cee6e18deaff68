r"""(IA)^3 (NeurIPS 2022, arXiv 2205.05638): every output of a module is scaled by a number that is trained.

    y = l * (W x) + b,    l = 1 at the start

In the form of every adapter that is the row gain ``g = l`` and no factors (stored as factors of rank 1 that are zero,
since PEFT has no rank 0). The paper scales keys, values and the inputs of the second layer of each feed-forward block.
Keys and values are outputs: ``--target-modules k_proj,v_proj``. The third is an input, a scale of columns, which the
form does not have; in a gated block, ``down(act(gate x) * up x)``, it is the scale of up_proj's outputs, exactly:
``--target-modules k_proj,v_proj,up_proj``.

A bias is not scaled, as the paper's models have none; PEFT scales it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.training.variants.base import Parametrization, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class IA3(Variant):
    """Every output of a module is scaled by a number that is trained."""

    paper: ClassVar[str | None] = "(IA)^3, arXiv 2205.05638"
    gains: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    learning_rate: ClassVar[float | None] = 3e-3

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Scales of 1."""
        return _Scales(context.sites)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """A scale for each output."""
        return d_out

    def rank(self, r: int) -> int:
        """PEFT's least."""
        return 1


class _Scales(Parametrization):
    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self._A = {site.name: torch.zeros(1, site.d_in, device=site.device) for site in sites}
        self._B = {site.name: torch.zeros(site.d_out, 1, device=site.device) for site in sites}
        self.scale = nn.ParameterList(torch.ones(site.d_out, device=site.device) for site in sites)

    @property
    def drops_inputs(self) -> bool:
        """There are no factors to drop inputs of."""
        return False

    def factors(self) -> LoraFactors:
        """The scales as gains."""
        gain = dict(zip(self._A, self.scale, strict=True))
        return LoraFactors(self._A, self._B, dict.fromkeys(self._A, 1.0), gain)
