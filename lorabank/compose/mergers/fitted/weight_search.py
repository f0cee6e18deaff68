"""``weight-search``: one factor of the sum, found on a grid, with the whole curve (ControlPE, arXiv 2311.09773).

    delta W = w sum_k delta W_k,    w in a grid of `points` from `low` to `high` with the least loss

The loss is the mean over the tasks of the mean loss of their kept rows. ControlPE turns a prompt into a LoRA and then
shifts its effect by w, within [0, 1] and beyond; here w is searched for any members, one adapter included. The curve
is shown and stored: how flat it is matters as much as where its least point lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lorabank.compose.mergers.base import Merger, Sources, Told
from lorabank.core.errors import ConfigError, DivergedError
from lorabank.core.settings import setting


@dataclass(frozen=True)
class WeightSearch(Merger):
    """The sum of the delta weights times the factor of a grid with the least loss on kept rows."""

    paper = "ControlPE, arXiv 2311.09773"
    fitted: ClassVar[bool] = True

    low: float = setting(0.0, "Lower end of the grid.")
    high: float = setting(1.5, "Upper end of the grid.")
    points: int = setting(16, "Number of factors in the grid, evenly spaced, both ends included.", ge=2, le=1000)
    rows: int = setting(32, "Maximum number of kept rows of each task.", ge=1)

    def check(self, tasks: Sequence[str]) -> None:
        """Refuse an empty grid.

        Raises:
            ConfigError: ``high`` is not above ``low``.
        """
        if self.high <= self.low:
            raise ConfigError(
                f"high = {self.high:g} is not above low = {self.low:g}",
                hint=f"--set high={self.low + 1:g}",
                unchanged="nothing was changed",
            )

    def merge(self, sources: Sources) -> Told:
        """The same weight for each task, and the curve.

        Raises:
            DivergedError: No factor of the grid has a finite loss.
        """
        kept = sources.kept.sample(self.rows)
        factors = [self.low + (self.high - self.low) * i / (self.points - 1) for i in range(self.points)]
        curve: dict[float, float] = {}
        kept.observer.start("a factor of the sum", self.points)
        try:
            for done, factor in enumerate(factors, start=1):
                with kept.summed(dict.fromkeys(kept.tasks, factor)):
                    curve[factor] = kept.mean_loss()
                kept.observer.advance(done, {"loss": curve[factor]})
        finally:
            kept.observer.finish()
        finite = [(loss, factor) for factor, loss in curve.items() if math.isfinite(loss)]
        if not finite:
            raise DivergedError("no factor of the grid has a finite loss", unchanged="nothing was changed")
        _, best = min(finite)
        points = [{"factor": factor, "loss": loss if math.isfinite(loss) else None} for factor, loss in curve.items()]
        return Told(dict.fromkeys(sources.tasks, best), {"factor": best, "curve": points})
