"""The score of each task over the stages: which task is forgotten, by which later one, and which comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorabank.core.escaping import safe
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.metrics import Values
from lorabank.evaluation.plots.heatmap import GREY, INK, Plot
from lorabank.evaluation.plots.lines import COLOURS, MARKERS, apart, plain_axes, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMED = 24
"""Stages whose task stands below them."""


def task_plot(matrix: ScoreMatrix, title: str = "") -> Plot:
    """A line for each task, from the stage after which it was learnt; of many tasks those that lost most are named.

    Args:
        matrix: The scores; a stage without a score is left out of the task's line.
        title: Line above the plot.
    """
    return Plot(lambda: _draw(matrix, title))


def lost(matrix: ScoreMatrix) -> dict[str, float]:
    """Task to what it lost from its first score, at or after its own stage, to its last; of tasks with two scores."""
    return {task: float(own[0] - own[-1]) for task, own in known_scores(matrix).items() if len(own) > 1}


def known_scores(matrix: ScoreMatrix) -> dict[str, Values]:
    """Task to its scores from its own stage on, without those that were not measured."""
    columns = {task: matrix.values[column + 1 :, column] for column, task in enumerate(matrix.tasks)}
    return {task: scores[~np.isnan(scores)] for task, scores in columns.items()}


def _draw(matrix: ScoreMatrix, title: str) -> Figure:
    from matplotlib.figure import Figure

    losses = lost(matrix)
    ranked = sorted(matrix.tasks, key=lambda task: -losses.get(task, -np.inf))
    named = [task for task in matrix.tasks if task in ranked[: len(COLOURS)]]
    stages = len(matrix.tasks)
    figure = Figure(figsize=(min(3.2 + 0.45 * stages, 8.5), 3.6), facecolor="white")
    axes = figure.add_subplot()
    ends = []
    for column, task in enumerate(matrix.tasks):
        rows = np.arange(column + 1, stages + 1)
        scores = matrix.values[column + 1 :, column]
        known = ~np.isnan(scores)
        if task not in named:
            axes.plot(rows[known], scores[known], color=GREY, linewidth=0.8, alpha=0.45, zorder=1)
        elif known.any():
            look = named.index(task)
            colour = COLOURS[look]
            axes.plot(rows[known], scores[known], color=colour, marker=MARKERS[look], markersize=5, linewidth=1.8)
            ends.append((task, float(scores[known][-1]), colour))
    axes.set_xlim(0.7, stages + 0.3)
    axes.set_ylim(*_range(matrix))
    _name_ends(axes, ends)
    _name_stages(axes, matrix.tasks)
    plain_axes(axes)
    axes.set_xlabel("after learning", fontsize=9, color=INK)
    axes.set_ylabel(safe(matrix.metric.replace("_", " ")), fontsize=9, color=INK, parse_math=False)
    if title:
        axes.set_title(safe(title), loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)
    return figure


def _range(matrix: ScoreMatrix) -> tuple[float, float]:
    """From the tenth below the lowest score that is drawn, up to 1."""
    scores = np.concatenate([*known_scores(matrix).values(), [1.0]])
    lowest = math.floor(10 * float(scores.min()) - 0.2) / 10
    return (max(0.0, min(lowest, 0.8)), 1.005)


def _name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """The name and last score of each line beside its end."""
    low, high = axes.get_ylim()
    places = apart([(score - low) / (high - low) for _, score, _ in ends], least=0.062)
    for (task, score, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            f"{short(task)} {score:.3f}",
            xy=(1, place),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour,
            annotation_clip=False,
            parse_math=False,
        )


def _name_stages(axes: Axes, tasks: Sequence[str]) -> None:
    every = -(-len(tasks) // _MOST_NAMED)
    stages = range(1, len(tasks) + 1, every)
    axes.set_xticks(list(stages))
    turned = len(tasks) > 4 or max(map(len, tasks)) > 9
    axes.set_xticklabels(
        [short(tasks[stage - 1]) for stage in stages],
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor",
        parse_math=False,
    )
