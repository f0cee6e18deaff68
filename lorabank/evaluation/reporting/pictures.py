"""The pictures of a report, made of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from lorabank.bank.snapshot import Snapshot
from lorabank.components.charts import Axes, Line, line_chart
from lorabank.components.colours import SERIES
from lorabank.components.lineage import Node, lineage
from lorabank.components.tables import MOST_WIDE, count_table, score_table
from lorabank.evaluation.confusion import LabelScores
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.plots.tasks import known_scores, lost
from lorabank.models.facts.curves import LearningCurve

_LEAST = 3
"""Scores of a task whose line says more than two cells of the matrix."""

_MOST_LABELS = 12
"""Labels of a confusion matrix that is shown whole."""

_MOST_GROUPS = 14
"""Compositions that are drawn beside the tasks."""


def matrix_picture(matrix: ScoreMatrix, caption: str, rows: Sequence[int] | None = None) -> Markup:
    """The scores after each task on each task, with the tasks learnt so far outlined.

    Args:
        matrix: The scores.
        caption: What they are.
        rows: Numbers of its rows; None for those that were measured.
    """
    rows = matrix.measured_rows if rows is None else rows
    ends = None if matrix.low is None else [matrix.low[row].tolist() for row in rows]
    return score_table(
        [matrix.row_labels[row] for row in rows],
        matrix.tasks,
        [matrix.values[row].tolist() for row in rows],
        caption=caption,
        corner="after learning ↓ scored on →",
        learnt=rows,
        low=ends,
        high=None if matrix.high is None else [matrix.high[row].tolist() for row in rows],
    )


def tasks_picture(matrix: ScoreMatrix) -> Markup | None:
    """The score of each task over the stages, those that lost most in colour; None where no task has three scores."""
    if max(map(len, known_scores(matrix).values()), default=0) < _LEAST:
        return None
    losses, stages = lost(matrix), np.arange(1, len(matrix.tasks) + 1)
    ranked = sorted(matrix.tasks, key=lambda task: -losses.get(task, -np.inf))[:SERIES]
    lines = [
        Line(task, stages[column:].tolist(), matrix.values[column + 1 :, column].tolist(), faint=task not in ranked)
        for column, task in enumerate(matrix.tasks)
    ]
    most = max(losses, key=lambda task: abs(losses[task]))
    return line_chart(
        [line for line in lines if np.isfinite(line.y).any()],
        Axes("after learning", matrix.metric, _floor(matrix), 1.0, places=_stages(matrix.tasks)),
        caption="Each task over the stages"
        + (f": the {SERIES} that lost most in colour" if len(lines) > SERIES else ""),
        told=f"{most} changed most: {-losses[most]:+z.3f} from its learning to the last stage",
        listed=False,
    )


def routing_picture(routing: Mapping[str, Any], caption: str) -> Markup:
    """Where a router sent the rows of each task; ``routing`` as of `Measured`."""
    return count_table(
        routing["tasks"],
        routing["tasks"],
        routing["confusion"],
        caption=caption,
        corner="rows of ↓ went to →",
        ends=routing.get("right"),
    )


def confusion_picture(scores: LabelScores, caption: str, *, recall: bool = False) -> Markup | None:
    """Which labels were answered in place of which; None where they are too many for a table.

    Args:
        scores: Those of a task.
        caption: What the table shows.
        recall: Whether the recall of each label stands in a last column.
    """
    if len(scores.names) > _MOST_LABELS or scores.unlisted:
        return None
    counts = {(wanted, answered): rows for wanted, answered, rows in scores.confusion}
    wanted = [one.label for one in scores.labels]
    return count_table(
        wanted,
        scores.names,
        [[counts.get((label, name), 0) for name in scores.names] for label in wanted],
        caption=caption,
        corner="wanted ↓ answered →",
        ends=[one.recall for one in scores.labels] if recall else None,
        end="recall",
    )


def curve_picture(curve: LearningCurve, task: str) -> Markup | None:
    """The loss of a training by its steps; None of a curve without points."""
    if not curve.steps:
        return None
    lines = [Line("training rows", curve.steps, curve.losses)]
    told = f"Loss from {curve.losses[0]:.4g} to {curve.losses[-1]:.4g} after {curve.steps[-1]} steps"
    mark = None
    if curve.held:
        lines.append(Line("held-out rows", curve.held.steps, curve.held.losses))
        mark = float(curve.held.best), f"kept: step {curve.held.best}"
        told += f"; on held-out rows {curve.held.lowest:.4g} after step {curve.held.best}, the lowest"
    rates = f"learning rate {curve.learning_rates[0]:.3g}"
    if curve.learning_rates[-1] != curve.learning_rates[0]:
        rates += f" to {curve.learning_rates[-1]:.3g}"
    axes = Axes("optimizer steps", "loss", least=0.0, mark=mark)
    return line_chart(lines, axes, caption=f"{task}: {told[0].lower()}{told[1:]}; {rates}")


def lineage_picture(snapshot: Snapshot) -> Markup | None:
    """Which adapters were trained beside which, and the members of compositions; None of fewer than two tasks."""
    if len(snapshot.tasks) < 2:
        return None
    adapters = [snapshot.adapter_of(task.name) for task in snapshot.tasks]
    places = {adapter.digest: place for place, adapter in enumerate(adapters)}
    nodes = [
        Node(task.name, tuple(sorted({places[one] for one in adapter.context if places.get(one, place) < place})))
        for place, (task, adapter) in enumerate(zip(snapshot.tasks, adapters, strict=True))
    ]
    by_name = {task.name: place for place, task in enumerate(snapshot.tasks)}
    groups = {
        one.name: [by_name[member] for member in one.members if member in by_name]
        for one in snapshot.compositions[:_MOST_GROUPS]
    }
    caption = "Which adapters were trained on top of which, and which answer together"
    if len(snapshot.compositions) > len(groups):
        caption += f": the first {len(groups)} of {len(snapshot.compositions)} compositions"
    return lineage(nodes, groups, caption=caption)


def averages_picture(lines: Sequence[Line], metric: str, caption: str) -> Markup | None:
    """The average over the tasks learnt so far, after each task; None where no line has three stages."""
    drawn = [line for line in lines if np.isfinite(line.y).sum() >= _LEAST]
    if not drawn:
        return None
    told = "; ".join(f"{line.name} ends at {[y for y in line.y if np.isfinite(y)][-1]:.3f}" for line in drawn[:SERIES])
    return line_chart(drawn, Axes("tasks learnt", metric, _lowest(drawn), 1.0), caption=caption, told=told)


def _lowest(lines: Sequence[Line]) -> float:
    edges = [y for line in lines for edge in (line.y, line.low or ()) for y in edge if np.isfinite(y)]
    return _tenth(min(edges))


def _floor(matrix: ScoreMatrix) -> float:
    return _tenth(float(np.concatenate([*known_scores(matrix).values(), [1.0]]).min()))


def _tenth(lowest: float) -> float:
    """The tenth below a score, where the axis begins: at most 0.8."""
    return max(0.0, min(float(np.floor(10 * lowest - 0.2)) / 10, 0.8))


def _stages(tasks: Sequence[str]) -> dict[float, str] | None:
    """The names of few stages; many are numbers."""
    return None if len(tasks) > MOST_WIDE else {float(stage): task for stage, task in enumerate(tasks, start=1)}
