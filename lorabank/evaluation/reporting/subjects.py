"""A section of a report about one evaluated subject: its pictures, and the tables that its folds hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lorabank.components.frame import Ids, plain
from lorabank.evaluation.confusion import LabelScores
from lorabank.evaluation.environments import mixed
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.reporting.measured import Measured
from lorabank.evaluation.reporting.pictures import confusion_picture, matrix_picture, routing_picture, tasks_picture
from lorabank.evaluation.reporting.words import with_meaning


def title_of(one: Measured) -> str:
    """The subject, with its mode where that is another word."""
    return f"{one.subject} ({one.mode})" if one.mode != one.subject else one.subject


def section(one: Measured, ids: Ids, name: str | None = None) -> dict[str, Any]:
    """What the macro ``subject`` shows.

    Args:
        one: The subject.
        ids: Gives the section its id.
        name: Its title; None for that of the subject.
    """
    matrix = ScoreMatrix(tuple(one.tasks), one.values, one.counts, one.low, one.high, plain(one.metric))
    title = name or title_of(one)
    return {
        "id": ids(title),
        "title": title,
        "measured": one,
        "matrix": matrix,
        "picture": matrix_picture(matrix, f"{matrix.metric} of {title}: after each task, on each task"),
        "by_task": tasks_picture(matrix),
        "routed": routing_picture(one.routing, "Where the router sent the rows of each task") if one.routing else None,
        "scalars": [(with_meaning(key), key, value) for key, value in one.scalars.items()],
        "mixed": mixed(one.environments),
        "labels": [(task, scores, _confusion(task, scores)) for task, scores in one.labels.items()],
    }


def _confusion(task: str, scores: LabelScores) -> Markup | None:
    """The whole matrix where it is small; None where nothing was confused, or the commonest are to be listed."""
    return confusion_picture(scores, f"Confusion matrix of {task}") if commonest(scores) else None


def commonest(scores: LabelScores) -> Sequence[tuple[str, str, int]]:
    """The commonest confusions, at most ten."""
    return sorted((one for one in scores.confusion if one[0] != one[1]), key=lambda one: -one[2])[:10]
