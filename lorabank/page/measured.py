"""What was measured: scores through time, where a router sent the rows, and two subjects side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from lorabank.components.charts import Axes, Line, line_chart
from lorabank.components.frame import plain
from lorabank.components.tables import bar
from lorabank.core.records import AS_TRAINED
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.metrics import average_accuracy, forgetting
from lorabank.evaluation.reporting.pictures import matrix_picture, routing_picture
from lorabank.evaluation.reporting.subjects import title_of
from lorabank.evaluation.reporting.words import with_meaning
from lorabank.page.errors import PageError
from lorabank.page.rendering import page
from lorabank.workflows.results import MatrixReport

router = APIRouter()

_FEWEST = 2
"""Stages of a line that says more than a number."""


@router.get("/matrix")
def matrix(request: Request, of: str = "", stage: int | None = None) -> Response:
    """The scores after each task up to a stage; by default after the last."""
    reports = request.app.state.facts.reports()
    if not reports:
        return page(request, "matrix.j2", report=None)
    report = _named(reports, of)
    scores, last = report.matrix(), len(report.tasks)
    now = last if stage is None else min(max(stage, 1), last)
    shown = [row for row in scores.measured_rows if row <= now]
    return page(
        request,
        "matrix.j2",
        report=report,
        title=title_of(report),
        titles=[title_of(one) for one in reports],
        stage=now,
        tasks=report.tasks,
        stages=_stages(scores),
        learnt=_learnt(scores, now),
        table=matrix_picture(scores, f"{plain(report.metric)} up to task {now}: after each task, on each task", shown)
        if shown
        else None,
        chart=_through_time(scores, now, plain(report.metric)),
    )


@router.get("/routing")
def routing(request: Request) -> Response:
    """Where the router of each composition sent the rows of each task."""
    reports = request.app.state.facts.reports()
    parts = [
        (
            title_of(one),
            one,
            routing_picture(one.routing, f"Where {one.subject} sent the evaluation rows of each task"),
        )
        for one in reports
        if one.routing
    ]
    made = [made.name for made in request.app.state.served.catalogue.look().compositions]
    return page(request, "routing.j2", parts=parts, compositions=made)


@router.get("/compare")
def compare(request: Request, one: str = "", other: str = "") -> Response:
    """Two subjects after the last task: scores by task, and the metrics of continual learning."""
    reports = request.app.state.facts.reports()
    titles = [title_of(report) for report in reports]
    if len(reports) < _FEWEST:
        return page(request, "compare.j2", titles=titles, one=None, other=None)
    first, second = _named(reports, one), _named(reports, other or titles[1])
    return page(
        request,
        "compare.j2",
        titles=titles,
        one=title_of(first),
        other=title_of(second),
        tasks=_side_by_side(first, second),
        scalars=[(with_meaning(name), value, second.scalars.get(name)) for name, value in first.scalars.items()],
        against=_paired(first.subject, second.subject),
    )


def _paired(one: str, other: str) -> list[str]:
    """The words of the command that tests two subjects on the same rows; none for one subject with two heads."""
    if one == other:
        return []
    return ["eval", *([] if one == AS_TRAINED else ["--composition", one]), "--against", other]


def _named(reports: list[MatrixReport], title: str) -> MatrixReport:
    """The report of a title; without one the first.

    Raises:
        PageError: There is none of this title.
    """
    for report in reports:
        if not title or title_of(report) == title:
            return report
    raise PageError(404, f"nothing is measured of {title[:80]!r}", hint="choose another name from the list")


class Stage(NamedTuple):
    """The tasks learnt so far after one of them; NaN where cells are missing.

    Attributes:
        number: How many they are.
        task: The last of them.
        average: Their mean score.
        forgetting: How far they fell below their best earlier scores.
    """

    number: int
    task: str
    average: float
    forgetting: float


def _stages(scores: ScoreMatrix) -> list[Stage]:
    found = []
    for number, task in enumerate(scores.tasks, start=1):
        until = scores.values[: number + 1, :number]
        found.append(Stage(number, task, average_accuracy(until), forgetting(until)))
    return found


def _learnt(scores: ScoreMatrix, stage: int) -> list[dict[str, Any]]:
    """Of each task learnt so far the score just after it was learnt, that of now, and how much it changed."""
    found = []
    for place, task in enumerate(scores.tasks[:stage]):
        first, now = float(scores.values[place + 1, place]), float(scores.values[stage, place])
        low, high = (None if ends is None else float(ends[stage, place]) for ends in (scores.low, scores.high))
        found.append(
            {"task": task, "first": first, "now": now, "change": now - first, "low": low, "high": high}
            | {"bar": bar(now, low, high), "rows": int(scores.counts[place])}
        )
    return found


def _through_time(scores: ScoreMatrix, stage: int, metric: str) -> Any:
    """The average and each task's score after each stage; None where that is not known of two stages."""
    stages = list(range(1, len(scores.tasks) + 1))
    averages = [one.average for one in _stages(scores)]
    if np.isfinite(averages).sum() < _FEWEST:
        return None
    single = [
        Line(task, stages[place:], scores.values[place + 1 :, place].tolist(), faint=True)
        for place, task in enumerate(scores.tasks)
    ]
    return line_chart(
        [Line("average of the tasks learnt so far", stages, averages), *single],
        Axes("tasks learnt", metric, 0.0, 1.0, mark=(stage, f"after task {stage}")),
        caption="Average over the tasks learnt so far, and each task in grey",
        told=f"The average is {averages[stage - 1]:.3f} after task {stage}"
        if np.isfinite(averages[stage - 1])
        else "",
        listed=False,
    )


def _side_by_side(one: MatrixReport, other: MatrixReport) -> list[dict[str, Any]]:
    """Each task's score of both after the last task, and the difference."""
    found = []
    for place, task in enumerate(one.tasks):
        first, second = one.values[-1][place], other.values[-1][place]
        apart = None if first is None or second is None else first - second
        found.append(
            {"task": task, "one": first, "other": second, "apart": apart, "bar": bar(apart, least=-1.0, most=1.0)}
            | {"ends": [(one.low[-1][place], one.high[-1][place]), (other.low[-1][place], other.high[-1][place])]}
        )
    return found
