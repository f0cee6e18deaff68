"""Loss and learning rate of each step, recorded in a bounded number of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorabank.models.facts.curves import HeldOut, LearningCurve

_MOST = 256
"""Points; when there are so many, each two become one and every later point stands for twice as many steps."""


class CurveRecorder:
    """Records a training while it runs; what it holds is a pure function of what it was given.

    A step's loss may arrive after the rates of later steps, since a GPU's numbers are read late.
    """

    def __init__(self) -> None:
        self._every = 1
        self._points: list[list[float]] = []  # last step, mean loss, learning rate
        self._open = [0.0, 0.0]  # sum and number of the losses of the point that is under way
        self._last = 0
        self._rates: dict[int, float] = {}

    def rate(self, step: int, learning_rate: float) -> None:
        """The learning rate of a step that is about to be made."""
        self._rates[step] = learning_rate

    def loss(self, step: int, loss: float) -> None:
        """The loss of a step; a step that is recorded already keeps its first loss."""
        if step <= self._last or step not in self._rates:
            return
        self._last, rate = step, self._rates[step]
        self._rates = {later: value for later, value in self._rates.items() if later >= step}
        self._open = [self._open[0] + loss, self._open[1] + 1]
        if self._open[1] == self._every:
            self._points.append([step, self._open[0] / self._open[1], rate])
            self._open = [0.0, 0.0]
        if len(self._points) == _MOST:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [[last[0], (first[1] + last[1]) / 2, last[2]] for first, last in pairs]
            self._every *= 2

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON has it."""
        return {
            "every": self._every,
            "points": self._points,
            "open": self._open,
            "last": self._last,
            "rates": {str(step): rate for step, rate in self._rates.items()},
        }

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._every, self._last = facts["every"], facts["last"]
        self._points, self._open = [list(point) for point in facts["points"]], list(facts["open"])
        self._rates = {int(step): rate for step, rate in facts["rates"].items()}

    def curve(self, held: HeldOut | None = None) -> LearningCurve:
        """The curve up to the last step."""
        points = [*self._points]
        if self._open[1]:
            points.append([self._last, self._open[0] / self._open[1], self._rates[self._last]])
        steps = tuple(int(step) for step, _, _ in points)
        return LearningCurve(
            every=self._every,
            steps=steps,
            losses=tuple(loss for _, loss, _ in points),
            learning_rates=tuple(rate for _, _, rate in points),
            held=held,
        )
