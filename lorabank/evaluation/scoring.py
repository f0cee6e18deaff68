"""From what was said to the rows of a task to one score with its interval."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, DivergedError
from lorabank.core.shelves import SCORINGS, TEXT_METRICS
from lorabank.core.task_kinds import HEAD
from lorabank.evaluation.metrics import wilson_interval

_Z95 = 1.959963984540054
_LOG_MOST = math.log(sys.float_info.max)
ACCURACY = "accuracy"
INVERSE_PERPLEXITY = "inverse_perplexity"


@dataclass(frozen=True)
class Said:
    """What a subject said to n rows.

    Attributes:
        answers: A label or a text for each row; empty where its likelihood was asked for.
        routed: For a routed subject the task each row was sent to, else empty.
        log_likelihoods: For perplexity, float64 ``[n]``: of each row's text.
        tokens: For perplexity, int64 ``[n]``: tokens of each row.
        probabilities: Of each answer among the labels of the task that gave it; NaN of a generated text.
        confidence: The probability of the task that each row was sent to, float64 ``[n]``; None where the router
            gives none.
    """

    answers: tuple[str, ...]
    routed: tuple[str, ...] = ()
    log_likelihoods: NDArray[np.float64] | None = None
    tokens: NDArray[np.int64] | None = None
    probabilities: NDArray[np.float32] | None = None
    confidence: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Score:
    """A value in [0, 1] with its 95 % interval and what else is worth keeping.

    Attributes:
        rows: What the value is made of, float64 ``[n]``: the score of each row; for perplexity its log-likelihood over
            the mean number of tokens, so that the mean is the log-likelihood of a token.
    """

    value: float
    low: float
    high: float
    rows: NDArray[np.float64]
    detail: dict[str, Any] = field(default_factory=dict)


def checked_metric(task: str, scoring: str, usual: str, chosen: str) -> str:
    """What was chosen to score a task's cells by, if it can be.

    Args:
        task: Its name.
        scoring: How it is scored.
        usual: Its metric where none is chosen.
        chosen: The metric.

    Raises:
        ConfigError: The task's scoring has no such metric.
    """
    if (chosen == INVERSE_PERPLEXITY) != measured(scoring):
        raise ConfigError(
            f"task {task!r} is scored by {scoring}, which has no {chosen}",
            hint=f"--metric auto ({usual})",
            unchanged="nothing was changed",
        )
    return chosen


def measured(scoring: str) -> bool:
    """Whether the likelihood of a task's texts is measured, and no answer is compared.

    Raises:
        ConfigError: No package that is installed has the scoring.
    """
    return scoring != HEAD and bool(SCORINGS.load(scoring).measures)


def score_rows(metric: str, said: Said, gold: Sequence[str]) -> Score:
    """Score answers.

    Args:
        metric: ``accuracy`` (the very label), a name in ``TEXT_METRICS``, or ``inverse_perplexity``: exp of the mean
            log-likelihood of a token, in (0, 1] and higher when better, so that it can stand in a matrix.
        said: n answers, or n likelihoods.
        gold: n labels or texts.

    Returns:
        Wilson's interval for right-or-wrong metrics, the normal one for the others.
    """
    if metric == INVERSE_PERPLEXITY:
        assert said.log_likelihoods is not None
        assert said.tokens is not None
        return _perplexity(said.log_likelihoods, said.tokens)
    same: Callable[[str, str], float] = TEXT_METRICS.load(metric) if metric != ACCURACY else lambda a, b: float(a == b)
    values = np.array([same(answer, right) for answer, right in zip(said.answers, gold, strict=True)])
    mean = float(values.mean())
    if set(values.tolist()) <= {0.0, 1.0}:
        correct = int(values.sum())
        return Score(mean, *wilson_interval(correct, len(values)), values, {"correct": correct})
    half = _Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return Score(mean, max(0.0, mean - half), min(1.0, mean + half), values)


def _perplexity(likelihoods: NDArray[np.float64], tokens: NDArray[np.int64]) -> Score:
    """``exp(m)``, m the mean log-likelihood of a token; the interval is that of m, rows taken as independent."""
    mean = float(likelihoods.sum() / tokens.sum())
    if not mean > -_LOG_MOST:
        raise DivergedError(
            f"the perplexity is not finite: a token has the mean log-likelihood {mean:g}",
            unchanged="no score was stored",
            hint="show lists the adapters that answer",
            commands=[Command("show", "NAME")],
        )
    residual = (likelihoods - mean * tokens) / tokens.mean()
    half = _Z95 * float(residual.std(ddof=1)) / math.sqrt(len(tokens)) if len(tokens) > 1 else math.inf
    detail = {"perplexity": math.exp(-mean), "tokens": int(tokens.sum())}
    rows = likelihoods / tokens.mean()
    return Score(math.exp(mean), math.exp(mean - half), math.exp(min(0.0, mean + half)), rows, detail)
