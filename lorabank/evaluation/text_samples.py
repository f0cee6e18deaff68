"""How free text was answered: every text metric over all rows, and some rows with what was asked, wanted and got.

A cell keeps them in its detail, bounded whatever the number and the length of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lorabank.core.records import EvaluationRecord
from lorabank.core.shelves import SCORINGS, TEXT_METRICS
from lorabank.core.task_kinds import HEAD
from lorabank.evaluation.scoring import ACCURACY

KEY = "texts"
"""Where a cell's detail holds it."""

FACT = "text_metric"
"""Where an adapter's record holds the `lorabank.evaluation.text_metrics.usual_metric` of its task."""

MOST_SAMPLES = 5
MOST_CHARACTERS = 300
"""Of each text of a sample."""


@dataclass(frozen=True)
class Sample:
    """One evaluation row; long texts have lost their middle.

    Attributes:
        row: Its number among the evaluation rows, from 1.
        asked: The prompt.
        wanted: The answer of the data.
        got: What was generated.
    """

    row: int
    asked: str
    wanted: str
    got: str


@dataclass(frozen=True)
class TextScores:
    """How the rows of a task with free answers were answered.

    Attributes:
        metrics: Each metric of ``TEXT_METRICS`` to its mean over all rows.
        samples: Rows at equal distances.
    """

    metrics: dict[str, float]
    samples: tuple[Sample, ...]


def metric_of(scoring: str, facts: Mapping[str, Any]) -> str:
    """The metric of a task's cells where none is chosen.

    Args:
        scoring: How the task is scored.
        facts: The ``metrics`` of its adapter's record; one of before `usual_metric` names none.

    Raises:
        ConfigError: No package that is installed has the scoring.
    """
    if scoring == HEAD:
        return ACCURACY
    method = SCORINGS.load(scoring)
    return str(facts.get(FACT, method.metric) if method.generates else method.metric)


def text_detail(asked: Sequence[str], wanted: Sequence[str], got: Sequence[str]) -> dict[str, Any]:
    """What a cell keeps of n generated answers, as plain values."""
    metrics = {name: fmean(map(metric, got, wanted)) for name, metric in TEXT_METRICS.items()}
    count = min(MOST_SAMPLES, len(got))
    rows = [k * len(got) // count for k in range(count)]
    samples = [[row + 1, *(shortened(texts[row]) for texts in (asked, wanted, got))] for row in rows]
    return {"metrics": metrics, "samples": samples}


def text_scores(record: EvaluationRecord) -> TextScores | None:
    """How the rows of a cell were answered; None where they have labels, or were scored before that was kept."""
    kept: Mapping[str, Any] | None = record.detail.get(KEY)
    if kept is None:
        return None
    return TextScores(dict(kept["metrics"]), tuple(Sample(*values) for values in kept["samples"]))


def shortened(text: str) -> str:
    """A text of at most ``MOST_CHARACTERS``: of a longer one its beginning and its end."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = (MOST_CHARACTERS - 3) // 2
    return f"{text[:half]} … {text[-half:]}"
