"""Whether one result is better than another on the same rows: the difference, its interval and a p-value.

Both results answered every row, so the rows are paired and only where they differ counts. Of scores that are right or
wrong, flipping the signs of the differences is McNemar's exact test: among the rows that one alone got right, each
side is as likely under the null hypothesis.

McNemar, Psychometrika 12 (1947); Fisher, The Design of Experiments (1935), chapter 3 (sign flips); Efron, Ann. Stat. 7
(1979) (bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lorabank.core.errors import IncompatibleError
from lorabank.core.records import EvaluationRecord

RESAMPLES = 10_000
_AT_ONCE = 1_000_000
"""Counts of a bootstrap that are in memory at a time."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Paired:
    """A result less a baseline, on the same rows.

    Attributes:
        difference: Mean over the rows of a task, and over the tasks.
        standard_error: Of the difference, from the differences of the rows; None of a task with a single row.
        low: Lower end of the 95 % interval: percentiles of 10,000 seeded resamples of the rows of each task.
        high: Upper end.
        p_value: Two-sided, of the hypothesis that the sign of each row's difference is a coin's.
        test: ``"mcnemar"`` (all differences have one size: exact), ``"all"`` (every pattern of signs: exact), or
            ``"sampled"`` (10,000 seeded patterns).
        rows: Rows in all.
        better: Rows with a higher score than the baseline's.
        worse: Rows with a lower one.
    """

    difference: float
    standard_error: float | None
    low: float
    high: float
    p_value: float
    test: Literal["mcnemar", "all", "sampled"]
    rows: int
    better: int
    worse: int


@dataclass(frozen=True)
class PairedReport:
    """A result less a baseline on the same rows, after the last task.

    Attributes:
        baseline: ``"as-trained"`` or a composition.
        values: Task to the baseline's score.
        tasks: Task to the test of its rows. Of texts scored by perplexity the difference is that of the
            log-likelihood of a token, in nats.
        overall: All tasks, each with the same weight; None where tasks are scored by different metrics.
    """

    baseline: str
    values: dict[str, float]
    tasks: dict[str, Paired]
    overall: Paired | None


class RowScores(NamedTuple):
    """Task to the score of each evaluation row ``[n]``, to the cell that these make, and to the digest of the rows."""

    scores: Mapping[str, npt.NDArray[np.float64]]
    cells: Mapping[str, EvaluationRecord]
    digests: Mapping[str, str]


def against(baseline: str, found: RowScores, base: RowScores) -> PairedReport:
    """Test a result against a baseline, task by task and over all.

    Args:
        baseline: The name of the baseline.
        found: What is tested.
        base: The baseline's scores, of the same tasks or more.

    Raises:
        IncompatibleError: The baseline was scored on other rows, or by another metric.
    """
    for task, cell in found.cells.items():
        if found.digests[task] != base.digests.get(task) or cell.metric != base.cells[task].metric:
            raise IncompatibleError(
                f"the baseline {baseline!r} was not scored on the same rows of task {task!r} by {cell.metric}",
                hint="a paired test needs the same evaluation rows and metric in both banks",
                unchanged="the scores that were computed are kept",
            )
    differences = {task: scores - base.scores[task] for task, scores in found.scores.items()}
    one_metric = len({cell.metric for cell in found.cells.values()}) == 1
    return PairedReport(
        baseline=baseline,
        values={task: base.cells[task].value for task in found.cells},
        tasks={task: paired_test([difference]) for task, difference in differences.items()},
        overall=paired_test(list(differences.values())) if one_metric else None,
    )


def paired_test(differences: Sequence[npt.NDArray[np.float64]], seed: int = 0) -> Paired:
    """Test whether the mean difference is 0.

    Args:
        differences: For each task the scores of its rows less the baseline's, float64 ``[n]`` with n > 0. Every task
            counts the same, whatever its rows.
        seed: Of the resamples.
    """
    chance = np.random.default_rng(seed)
    tasks = len(differences)
    weighted = np.concatenate([one / (tasks * len(one)) for one in differences])
    p_value, test = _p_value(weighted[weighted != 0], chance)
    low, high = np.quantile(sum(_resampled(one, chance) for one in differences) / tasks, (0.025, 0.975))
    variances = [one.var(ddof=1) / len(one) if len(one) > 1 else math.nan for one in differences]
    error = math.sqrt(sum(variances)) / tasks
    return Paired(
        difference=float(weighted.sum()),
        standard_error=None if math.isnan(error) else error,
        low=float(low),
        high=float(high),
        p_value=p_value,
        test=test,
        rows=len(weighted),
        better=int((weighted > 0).sum()),
        worse=int((weighted < 0).sum()),
    )


def _resampled(values: npt.NDArray[np.float64], chance: np.random.Generator) -> Any:
    """Means of resamples of n values, ``[RESAMPLES]``: how often each distinct value is drawn is multinomial."""
    distinct, counts = np.unique(values, return_counts=True)
    means, step = [], max(1, _AT_ONCE // len(distinct))
    for first in range(0, RESAMPLES, step):
        drawn = chance.multinomial(len(values), counts / len(values), size=min(step, RESAMPLES - first))
        means.append(drawn @ distinct / len(values))
    return np.concatenate(means)


def _p_value(
    values: npt.NDArray[np.float64], chance: np.random.Generator
) -> tuple[float, Literal["mcnemar", "all", "sampled"]]:
    """Of n differences that are not 0, the share of sign patterns whose sum is as far from 0 as theirs."""
    sizes = np.abs(values)
    least = abs(values.sum()) * (1 - _ROUNDING)
    if not len(values) or np.ptp(sizes) <= _ROUNDING * sizes.max():
        return _binomial(len(values), int((values > 0).sum())), "mcnemar"
    if 2 ** len(values) <= RESAMPLES:
        bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values))
        return float((np.abs((1 - 2 * (bits & 1)) @ sizes) >= least).mean()), "all"
    sums = np.zeros(RESAMPLES)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        sums += size * (2 * chance.binomial(count, 0.5, RESAMPLES) - count)
    return float((1 + (np.abs(sums) >= least).sum()) / (1 + RESAMPLES)), "sampled"


def _binomial(n: int, heads: int) -> float:
    """Two-sided: how likely n tosses of a coin are at least as uneven; exact, in whole numbers."""
    term = total = 1
    for k in range(1, min(heads, n - heads) + 1):
        term = term * (n - k + 1) // k
        total += term
    return min(1.0, 2 * total / (1 << n))
