"""A variant: every rank has a weight of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class Triple(Variant):
    """``s B diag(e) A``, e trained beside both."""

    weight: float = setting(1.0, "Where every weight begins.", gt=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B where the start begins."""
        return Weighed(start.begin(context), self.weight)


class Weighed(FreeFactors):
    """Both factors, and a weight for each rank."""

    def __init__(self, start: LoraFactors, weight: float) -> None:
        super().__init__(start)
        self.e = nn.ParameterList(a.new_full((len(a),), weight) for a in start.A.values())

    def factors(self) -> LoraFactors:
        """diag(e) A and B."""
        free = super().factors()
        return replace(free, A={site: e[:, None] * a for (site, a), e in zip(free.A.items(), self.e, strict=True)})
