"""LoRA (arXiv 2106.09685), and rsLoRA (arXiv 2312.03732) with ``--use-rslora``: A and B are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabank.training.variants.base import FreeFactors, Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class Lora(Variant):
    """A and B are trained, with one learning rate."""

    paper: ClassVar[str | None] = "LoRA, arXiv 2106.09685"
    plain: ClassVar[bool] = True
    shifted: ClassVar[bool] = True

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Free factors."""
        return FreeFactors(start.begin(context), shifted=start.shifts)
