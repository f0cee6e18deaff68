"""``weighted``: fixed weights, the delta weights summed exactly (task arithmetic, arXiv 2212.04089).

    delta W = sum_k w_k ((diag(g_k) - 1) W + s_k B_k A_k)

Exact for mixed ranks, scalings and signs, because the factors are concatenated and not averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from lorabank.compose.mergers.base import Merger, Sources
from lorabank.core.errors import ConfigError
from lorabank.core.settings import nearest, setting


@dataclass(frozen=True)
class Weighed(Merger):
    """A merger that has a weight for each member."""

    weights: str | Mapping[str, float] | None = setting(
        None, "sentiment=0.7,spam=0.3 (any sign); default: 1 for each member."
    )

    def prepared(self, tasks: Sequence[str]) -> Self:
        """With a weight for each task.

        Raises:
            ConfigError: The text names other tasks.
            ValueError: A stored weight is missing, or is not finite.
        """
        if not isinstance(self.weights, Mapping):
            return replace(self, weights=parse_weights(self.weights, tasks))
        missing = [task for task in tasks if not math.isfinite(self.weights.get(task, math.nan))]
        if missing:
            raise ValueError(f"no weight is given for {missing[0]!r}")
        return replace(self, weights={task: self.weights[task] for task in tasks})

    def near(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """The weight of each task."""
        assert isinstance(self.weights, Mapping)
        return {task: self.weights[task] for task in tasks}


@dataclass(frozen=True)
class Weighted(Weighed):
    """The sum of the delta weights, each times a weight."""

    paper = "task arithmetic, arXiv 2212.04089"

    def sum_of(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """The weight of each task."""
        return self.near(tasks)

    def merge(self, sources: Sources) -> Mapping[str, float]:
        """The weights."""
        return self.sum_of(sources.tasks)


def parse_weights(text: str | None, tasks: Sequence[str]) -> dict[str, float]:
    """``"sentiment=0.7,spam=-0.3"`` as a mapping; None gives every task the weight 1.

    Raises:
        ConfigError: For an unknown, missing or repeated task, or a weight that is not a finite number.
    """
    if text is None:
        return dict.fromkeys(tasks, 1.0)
    weights: dict[str, float] = {}
    for part in text.split(","):
        task, _, number = (piece.strip() for piece in part.partition("="))
        if task not in tasks:
            raise ConfigError(
                f"weights names {task!r}, which is not a member{nearest(task, list(tasks))}",
                hint=f"members: {', '.join(tasks)}",
                unchanged="nothing was changed",
            )
        if task in weights:
            raise ConfigError(f"weights names {task!r} twice", unchanged="nothing was changed")
        try:
            weights[task] = float(number)
        except ValueError:
            weights[task] = float("nan")
        if not abs(weights[task]) < float("inf"):
            raise ConfigError(
                f"weights: {part.strip()!r} is not TASK=NUMBER",
                hint=f"for example {','.join(f'{name}=1' for name in tasks)}",
                unchanged="nothing was changed",
            )
    return {task: weights.get(task, 0.0) for task in tasks}
