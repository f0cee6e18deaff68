"""A metric of the matrix of scores."""

from __future__ import annotations

from lorabank.evaluation.metrics import Counts, Values


def worst_task(values: Values, counts: Counts = None) -> float:
    """Lowest score after the last task: ``min_j R[T, j]``; higher is better."""
    return float(values[-1].min())
