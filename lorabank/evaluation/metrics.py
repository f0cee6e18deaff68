"""Continual-learning metrics: pure functions of the matrix of scores.

``values[i, j]`` is the score on task j after task i, a float64 array [T + 1, T]: row 0 is the untrained base, row i
(from 1) the state after task i, so task j (column j, from 0) is learnt in row j + 1 and the scores just after
learning stand at ``values[j + 1, j]``. A missing score is NaN, and every metric that needs one is NaN.

The same name means different numbers in different papers and libraries; the variants have names of their own here.
Each function takes ``counts``, the number of evaluation rows of each task [T]: None gives the mean over tasks
(macro), counts give the mean over rows (micro).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lorabank.core.shelves import METRICS

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[Any] | None


def compute_scalars(values: Values, counts: Counts = None, reference: Values | None = None) -> dict[str, float]:
    """Every metric of ``METRICS`` by name.

    Args:
        values: Scores [T + 1, T].
        counts: Evaluation rows of each task [T] for micro averages, None for macro.
        reference: Scores [T] of models trained for one task (or for all at once). Without it ``intransigence`` is
            left out: there is nothing to compare with.

    Returns:
        Name to value; NaN where a score is missing or the metric needs more tasks.
    """
    scalars = {}
    for name, metric in METRICS.items():
        if metric is not intransigence:
            scalars[name] = float(metric(values, counts))
        elif reference is not None:
            scalars[name] = intransigence(values, counts, reference=reference)
    return scalars


def average_accuracy(values: Values, counts: Counts = None) -> float:
    """Mean score over all tasks after the last: ``1/T Σ_j R[T, j]``."""
    return _mean(values[-1], counts)


def average_incremental_accuracy(values: Values, counts: Counts = None) -> float:
    """Mean over the stages of the average accuracy on the tasks seen: ``1/T Σ_i 1/i Σ_{j≤i} R[i, j]``."""
    stages = range(1, len(values))
    return _mean(np.array([_mean(values[i, :i], None if counts is None else counts[:i]) for i in stages]))


def average_through_time(values: Values) -> Values:
    """Mean score over the tasks learnt so far, after each task [T]; NaN where one of these scores is missing."""
    return np.array([values[stage, :stage].mean() for stage in range(1, len(values))])


def learning_accuracy(values: Values, counts: Counts = None) -> float:
    """Mean score on each task just after it was learnt, the diagonal: ``1/T Σ_j R[j, j]``."""
    return _mean(_learnt(values), counts)


def backward_transfer(values: Values, counts: Counts = None) -> float:
    """What later tasks did to earlier ones: ``1/(T-1) Σ_{j<T} (R[T, j] - R[j, j])``; negative is forgetting.

    Lopez-Paz and Ranzato, Gradient Episodic Memory, https://arxiv.org/abs/1706.08840.
    """
    return _mean((values[-1] - _learnt(values))[:-1], _earlier(counts))


def backward_transfer_div_t(values: Values, counts: Counts = None) -> float:
    """Backward transfer as some code divides it, by all T tasks; the last task counts as 0."""
    change = values[-1] - _learnt(values)
    return _mean(change, counts) if len(change) > 1 else float("nan")


def forward_transfer(values: Values, counts: Counts = None) -> float:
    """What earlier tasks gave to later ones: ``1/(T-1) Σ_{j>1} (R[j-1, j] - R[0, j])``, against the untrained base.

    Lopez-Paz and Ranzato, https://arxiv.org/abs/1706.08840.
    """
    gained = np.diagonal(values) - values[0]
    return _mean(gained[1:], None if counts is None else counts[1:])


def forgetting(values: Values, counts: Counts = None) -> float:
    """Loss from the best earlier score: ``1/(T-1) Σ_{j<T} (max_{j≤i<T} R[i, j] - R[T, j])``; may be negative.

    Chaudhry et al., Riemannian Walk, https://arxiv.org/abs/1801.10112.
    """
    return _mean((_best(values[:-1]) - values[-1])[:-1], _earlier(counts))


def forgetting_first_last(values: Values, counts: Counts = None) -> float:
    """Loss from the first score, as Avalanche counts it: ``1/(T-1) Σ_{j<T} (R[j, j] - R[T, j])``."""
    return _mean((_learnt(values) - values[-1])[:-1], _earlier(counts))


def forgetting_max_all(values: Values, counts: Counts = None) -> float:
    """Loss from the best score, the last one included, as Mammoth counts it; never negative."""
    return _mean((_best(values) - values[-1])[:-1], _earlier(counts))


def intransigence(values: Values, counts: Counts = None, *, reference: Values | None = None) -> float:
    """What could have been learnt but was not: ``1/T Σ_j (reference[j] - R[j, j])``.

    Chaudhry et al., https://arxiv.org/abs/1801.10112.
    """
    return float("nan") if reference is None else _mean(reference - _learnt(values), counts)


def wilson_interval(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion; unlike ``p ± z·s`` it stays in [0, 1] and works at 0 and 1.

    Args:
        correct: Rows that were right.
        n: Rows in all.
        z: Quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        Lower and upper bound; NaN for no rows.

    Raises:
        ValueError: ``correct`` is not in [0, n].
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} rows cannot be right")
    if n == 0:
        return float("nan"), float("nan")
    p, square = correct / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * float(np.sqrt(p * (1 - p) / n + square / (4 * n * n)))
    # At 0 and n the bound is exact, but rounding would leave it at 1e-17.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


def _mean(scores: Values, weights: Counts = None) -> float:
    """(Weighted) mean; NaN of nothing, as of anything missing."""
    if len(scores) == 0 or (weights is not None and not np.sum(weights)):
        return float("nan")
    return float(np.average(scores, weights=weights))


def _learnt(values: Values) -> Values:
    """Score on each task just after it was learnt [T]."""
    return np.diagonal(values, offset=-1)


def _best(values: Values) -> Values:
    """Best score on each task in the rows from its own on [T]; NaN where one is missing or there is none."""
    tasks = range(values.shape[1])
    return np.array([values[j + 1 :, j].max() if j + 1 < len(values) else np.nan for j in tasks])


def _earlier(counts: Counts) -> Counts:
    """Counts of all tasks but the last."""
    return None if counts is None else counts[:-1]
