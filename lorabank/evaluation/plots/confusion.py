"""A confusion matrix as PNG and SVG: rows of the wanted label, columns of the answer, coloured by a row's shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lorabank.core.escaping import safe
from lorabank.evaluation.confusion import LabelScores
from lorabank.evaluation.plots.heatmap import FAINT, GREY, INK, Plot, draw_bar, readable_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 40
"""Labels that are drawn: more could not be read."""
_FEW = 4
_MOST_NUMBERED = 25
"""Labels whose cells hold their numbers."""
_CHARACTERS = 30


def confusion_plot(scores: LabelScores, *title: str) -> Plot:
    """The confusion matrix of a task; of more labels than can be read, those with the most wrong rows.

    Args:
        scores: What was answered.
        title: Lines above the plot.
    """
    return Plot(lambda: _draw(scores, title))


def _draw(scores: LabelScores, title: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    names = _drawn(scores)
    rows = [one.label for one in scores.labels if one.label in names]
    counts, shares = _counts(scores, rows, names)
    side = 0.86 if len(names) <= _FEW else 0.62 if len(names) <= _MOST_NUMBERED else 0.26  # inches
    width, height = side * len(names), side * len(rows)
    # On a figure of one inch, fractions are inches; saving with a tight box keeps all that lies outside of it.
    figure = Figure(figsize=(1, 1), facecolor="white")
    axes, bar = figure.add_axes((0, 0, width, height)), figure.add_axes((width + 0.15, 0, 0.16, height))
    axes.pcolormesh(shares, cmap="viridis", vmin=0, vmax=1, edgecolors="white", linewidth=1)
    axes.set_xlim(0, len(names))
    axes.set_ylim(len(rows), 0)
    if len(names) <= _MOST_NUMBERED:
        _write_numbers(axes, counts, shares)
    draw_bar(bar, "share of the row")
    _label(axes, rows, names, title)
    left = len(scores.names) - len(names)
    if left:
        _note(axes, f"{len(names)} of {len(scores.names)} labels: those with the most wrong rows")
    return figure


def _drawn(scores: LabelScores) -> list[str]:
    """The labels that are drawn, in their order."""
    wrong = dict.fromkeys(scores.names, 0)
    for wanted, answered, rows in scores.confusion:
        if wanted != answered:
            wrong[wanted] += rows
            wrong[answered] += rows
    most = set(sorted(scores.names, key=lambda name: -wrong[name])[:MOST_LABELS])
    return [name for name in scores.names if name in most]


def _counts(scores: LabelScores, rows: list[str], names: list[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of rows, and their shares in all rows of the wanted label."""
    counts = np.zeros((len(rows), len(names)), np.int64)
    for wanted, answered, number in scores.confusion:
        if wanted in rows and answered in names:
            counts[rows.index(wanted), names.index(answered)] = number
    whole = {one.label: one.rows for one in scores.labels}
    return counts, counts / np.array([whole[label] for label in rows])[:, None]


def _write_numbers(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    from matplotlib import colormaps

    viridis = colormaps["viridis"]
    for (row, column), number in np.ndenumerate(counts):
        colour = readable_on(viridis(float(shares[row, column])))
        place = column + 0.5, row + 0.5
        axes.text(*place, str(number), ha="center", va="center_baseline", color=colour, fontsize=9)


def _label(axes: Axes, rows: list[str], names: list[str], title: Sequence[str]) -> None:
    axes.set_xticks(np.arange(len(names)) + 0.5)
    axes.set_yticks(np.arange(len(rows)) + 0.5)
    columns = [_short(name) for name in names]
    turned = len(names) > _MOST_NUMBERED or max(map(len, columns)) > 6
    rotation, align = (90, "center") if len(names) > _MOST_NUMBERED else (30, "left")
    rotation, align = (rotation, align) if turned else (0, "center")
    axes.set_xticklabels(columns, rotation=rotation, ha=align, parse_math=False)
    axes.set_yticklabels([_short(name) for name in rows], parse_math=False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("answered", fontsize=10, color=INK)
    axes.set_ylabel("wanted", fontsize=10, color=INK)
    axes.tick_params(length=0, labelsize=9 if len(names) <= _MOST_NUMBERED else 7, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    text = "\n".join(map(safe, title))
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK, pad=12, parse_math=False)


def _note(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0, 0), (0, -6), xycoords="axes fraction", textcoords="offset points", va="top", fontsize=8, color=GREY
    )


def _short(label: str) -> str:
    name = safe(label)
    return name if len(name) <= _CHARACTERS else f"{name[: _CHARACTERS - 1]}…"
