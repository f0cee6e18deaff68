"""Variants whose adapter has no factors that could be summed, so that its task answers alone or routed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabank.algebra.factors import LoraFactors
from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError
from lorabank.training.variants.base import Parametrization, PastUse, Variant

if TYPE_CHECKING:
    from lorabank.core.config import TrainConfig
    from lorabank.models.tuners.state import TunerState
    from lorabank.training.starts.base import FactorStart


class Tuned(Parametrization):
    """What is trained lies in layers of its own, which the model holds.

    Args:
        state: Gives the adapter as it is now.
    """

    def __init__(self, state: Callable[[], TunerState]) -> None:
        super().__init__()
        self._state = state

    def factors(self) -> LoraFactors:
        """None at all."""
        return LoraFactors({}, {}, {})

    def tuned(self) -> TunerState:
        """The adapter as it is stored."""
        return self._state()


@dataclass(frozen=True)
class AloneVariant(Variant):
    """What such variants have in common: they refuse penalties, a shared head and strategies with earlier adapters.

    Attributes:
        name: Its name on the shelf.
        why: Why its task answers alone, in a sentence without a full stop.
        no_penalty: Why no penalty goes with it, in the same form.
        whole: Why no saving of a part of a step goes with it, in the same form.
    """

    alone: ClassVar[bool] = True
    name: ClassVar[str] = ""
    why: ClassVar[str] = ""
    no_penalty: ClassVar[str] = ""
    whole: ClassVar[str] = ""

    def unfit(self, config: TrainConfig) -> ConfigError | None:
        """A head that all tasks share does not go with it."""
        if config.head == "shared":
            return self._refused("answers alone, and under --head shared the newest adapter answers for all tasks")
        return None

    def refuses_saving(self, *, partial: bool) -> str | None:
        """A saving may not leave out what only its own layers know."""
        return self.whole if partial else None

    def refuses(self, strategy: PastUse, start: FactorStart) -> str | None:
        """It has no A and B that could be summed, continued or held."""
        if strategy.earlier != "off" or strategy.answers != "own":
            return f"{self.why}, so the task answers alone"
        return self.no_penalty if strategy.penalty else super().refuses(strategy, start)

    def _refused(self, why: str, hint: str | None = None) -> ConfigError:
        return ConfigError(
            f"variant {self.name!r} {why}",
            hint=hint,
            commands=[Command("methods", self.name)],
            unchanged="nothing was changed",
        )
