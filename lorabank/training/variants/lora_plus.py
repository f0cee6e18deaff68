"""LoRA+ (ICML 2024, arXiv 2402.12354): B learns faster than A, by a fixed ratio of their learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class LoraPlus(Variant):
    """LoRA in which B has a higher learning rate than A."""

    paper: ClassVar[str | None] = "LoRA+, arXiv 2402.12354"
    plain: ClassVar[bool] = True
    shifted: ClassVar[bool] = True

    ratio: float = setting(16.0, "Ratio of B's learning rate to A's (--learning-rate).", ge=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Free factors in two groups of the optimizer."""
        return _FasterB(start.begin(context), self.ratio, shifted=start.shifts)


class _FasterB(FreeFactors):
    def __init__(self, start: LoraFactors, ratio: float, *, shifted: bool) -> None:
        super().__init__(start, shifted=shifted)
        self._ratio = ratio

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """B apart; A is trained like all others."""
        return [{"params": list(self.B.parameters()), "lr": self._ratio * learning_rate}]
