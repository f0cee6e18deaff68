"""How sure a router was of each row's task, and whether it was right: what a cell keeps of it, and what follows.

A cell keeps the rows in hundredths of the probability of their task, so that one cell answers for every threshold of
two decimals. They are kept apart for each task that rows were sent to: cells are shared by tasks with equal rows, and
only the reader knows which of them is meant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = "confidence"
"""Where a cell's detail holds it."""

_EDGES = np.arange(101) / 100


def detail(routed: Sequence[str], confidence: NDArray[np.float64], scores: Sequence[float]) -> dict[str, Any]:
    """What a cell keeps, as plain values.

    Args:
        routed: The task that each of n rows was sent to.
        confidence: Its probability, ``[n]``.
        scores: The score of each row's answer.

    Returns:
        Task to a list for each hundredth that has rows: the hundredth, rows, sum of confidence, sum of scores.
    """
    places = np.searchsorted(_EDGES, confidence, side="right") - 1
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0, 0.0, 0.0]))
    for task, place, sure, score in zip(routed, places.tolist(), confidence.tolist(), scores, strict=True):
        bin = found[task][place]
        bin[0] += 1
        bin[1] += sure
        bin[2] += score
    return {task: [[place, *bins[place]] for place in sorted(bins)] for task, bins in found.items()}


@dataclass(frozen=True)
class Sure:
    """Rows that a router is at least so sure of.

    Attributes:
        rows: How many.
        right: How many of them were sent to their own task.
        confidence: The sum of the probabilities of the tasks that they were sent to.
        score: The sum of their answers' scores.
    """

    rows: int = 0
    right: int = 0
    confidence: float = 0.0
    score: float = 0.0

    def __add__(self, other: Sure) -> Sure:
        return Sure(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def share(self, value: float) -> float | None:
        """A sum as a mean over the rows; None where there are none."""
        return value / self.rows if self.rows else None


def sure_rows(kept: Mapping[str, Any], own: str, threshold: float = 0.0) -> Sure:
    """The rows of a cell whose task is at least so likely.

    Args:
        kept: What `detail` gave.
        own: The task that the rows are of, under the name that cells know it by.
        threshold: From 0 to 1, of two decimals.
    """
    least = round(threshold * 100)
    found = Sure()
    for task, bins in kept.items():
        for place, rows, confidence, score in bins:
            if place >= least:
                found += Sure(int(rows), int(rows) * (task == own), float(confidence), float(score))
    return found
