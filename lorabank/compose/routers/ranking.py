"""From scores to a choice: which task, and how clearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TIE = 1e-9
"""Scores closer than this (relative to their size) are equal: rounding must not pick the task."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The choice for n queries.

    Attributes:
        task: int64 [n], index of the best task; the earlier one where scores are equal.
        score: float64 [n], its score.
        margin: float64 [n], how far the best *other* task lies below it, at least 0; infinite for a single task.
        posterior: float64 [n, T], how probable each task is, where the router says so; None where it does not.
    """

    task: NDArray[np.int64]
    score: NDArray[np.float64]
    margin: NDArray[np.float64]
    posterior: NDArray[np.float64] | None = None


def rank(scores: NDArray[np.float64]) -> Ranked:
    """Choose the first task of each row whose score is the best, up to rounding.

    Args:
        scores: [n, T], the higher the likelier; -inf for a task that cannot be one of the two best.
    """
    best = scores.max(1, keepdims=True)
    task = np.asarray(np.argmax(scores >= best - TIE * np.maximum(1.0, np.abs(best)), axis=1), np.int64)
    rows = np.arange(len(scores))
    score = scores[rows, task]
    others = scores.copy()
    others[rows, task] = -np.inf
    return Ranked(task, score, np.maximum(score - others.max(1), 0.0))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of each row [n, T], which sum to 1; 0 where the score is -inf."""
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))
