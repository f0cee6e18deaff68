"""The average over the tasks that were learnt, after each task: what a heat-map of many tasks does not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabank.core.escaping import safe
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.metrics import Values
from lorabank.evaluation.plots.heatmap import FAINT, GREY, INK, page_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = 3
"""Stages of a curve that says more than two numbers."""


def curve_svg(matrix: ScoreMatrix) -> str | None:
    """The curve as an ``<svg>`` element to put into a page; None where fewer than three stages were measured whole."""
    learnt, just = curves(matrix)
    known = np.flatnonzero(~np.isnan(learnt))
    if len(known) < _LEAST:
        return None
    first, last = known[0], known[-1]
    title = f"Average score over the tasks learnt so far, after each of {len(learnt)} tasks"
    told = f"From {learnt[first]:.3f} after task {first + 1} to {learnt[last]:.3f} after task {last + 1}"
    return page_svg(lambda: _draw(learnt, just, matrix.metric), title, told)


def curves(matrix: ScoreMatrix) -> tuple[Values, Values]:
    """The mean score over the tasks learnt so far [T], and the score of each task just after it was learnt [T]."""
    stages = range(1, len(matrix.tasks) + 1)
    return np.array([matrix.values[i, :i].mean() for i in stages]), np.diagonal(matrix.values, offset=-1)


def _draw(learnt: Values, just: Values, metric: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stages = np.arange(1, len(learnt) + 1)
    figure = Figure(figsize=(5.2, 3.1), facecolor="white")
    axes = figure.add_subplot()
    axes.plot(stages, just, "o", color=GREY, markersize=3.5, label="the task just learnt")
    axes.plot(stages, learnt, "-o", color="#31688e", markersize=4, linewidth=1.8, label="average of all learnt so far")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("tasks learnt", fontsize=9, color=INK)
    axes.set_ylabel(safe(metric), fontsize=9, color=INK, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=FAINT, linewidth=0.6)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
