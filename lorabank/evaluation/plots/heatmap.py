"""Heat-maps of a score matrix as PNG and SVG, and the matrix as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorabank.core.errors import ConfigError
from lorabank.core.escaping import formula_safe, safe
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.metrics import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GREY = "#1f2328", "#d8dee4", "#656d76"
_INK_LUMINANCE = 0.017
_CELL_WIDTH, _CELL_HEIGHT = 0.86, 0.52  # inches
_MOST_NUMBERED = 14
"""Tasks whose cells hold their numbers; the cells of more are smaller, and not every task is named beside them."""
_SMALL = 0.2  # inches
_MOST_NAMED = 25


class Plot:
    """A drawing: notebooks show it, `save` writes it, `figure` is matplotlib's, to be changed.

    Args:
        draw: Draws it, under lorabank's own settings of matplotlib.
    """

    def __init__(self, draw: Callable[[], Figure]) -> None:
        self._draw = draw

    @cached_property
    def figure(self) -> Figure:
        """The figure; what is changed in it is shown and saved."""
        with _own_settings():
            return self._draw()

    def save(self, path: str | Path) -> Path:
        """Write it as ``.png`` or ``.svg``, into a folder that exists.

        Raises:
            ConfigError: The suffix is another one.
        """
        target = Path(path)
        if target.suffix.lower() not in (".png", ".svg"):
            raise ConfigError(
                f"cannot draw {str(path)!r}: a plot is a .png or .svg file",
                unchanged="nothing was written",
                hint="for example --plot matrix.png",
            )
        target.write_bytes(_render(lambda: self.figure, target.suffix.lower()[1:]))
        return target

    def _repr_svg_(self) -> str:
        return _render(lambda: self.figure, "svg").decode()


def heatmap(matrix: ScoreMatrix, title: str = "") -> Plot:
    """A matrix in colours, which span [0, 1] in every plot, so that two plots can be compared.

    Args:
        matrix: Rows without a score are left out, cells without one stay empty.
        title: Line above the plot.
    """
    return Plot(lambda: _draw(matrix, title))


def write_csv(matrix: ScoreMatrix, path: str | Path) -> Path:
    """Write the scores, one line for each state and one column for each task; missing scores are empty cells.

    Args:
        matrix: Every row is written, from ``base`` on.
        path: Target file.

    Returns:
        The path.
    """
    target = Path(path)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["after", *map(formula_safe, matrix.tasks)])
        for label, row in zip(("base", *matrix.tasks), matrix.values, strict=True):
            writer.writerow([formula_safe(label), *("" if np.isnan(value) else repr(float(value)) for value in row)])
    return target


def _render(draw: Callable[[], Figure], format: str) -> bytes:
    buffer = io.BytesIO()
    with _own_settings():
        metadata: dict[str, Any] = {"Date": None} if format == "svg" else {}
        draw().savefig(buffer, format=format, dpi=200, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _own_settings() -> Iterator[None]:
    """Settings of matplotlib that no file decides: one with ``text.usetex`` would have it start LaTeX."""
    with _without_local_file():
        import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # The salt makes the ids inside an SVG repeatable.
        with matplotlib.rc_context(
            {"svg.hashsalt": "lorabank", "font.family": "DejaVu Sans", "axes.unicode_minus": False}
        ):
            yield


@contextmanager
def _without_local_file() -> Iterator[None]:
    """Matplotlib looks in the current folder for its settings first, while it is imported, and offers no switch."""
    exists = os.path.exists
    os.path.exists = lambda path: path != "matplotlibrc" and exists(path)
    try:
        yield
    finally:
        os.path.exists = exists


def _draw(matrix: ScoreMatrix, title: str) -> Figure:
    # Figure without pyplot: no window system, no global state, safe in a thread.
    from matplotlib.figure import Figure

    rows = list(matrix.measured_rows)
    small = len(matrix.tasks) > _MOST_NUMBERED
    cell = (_SMALL, _SMALL) if small else (_CELL_WIDTH, _CELL_HEIGHT)
    width, height = cell[0] * len(matrix.tasks), max(cell[1] * len(rows), _CELL_HEIGHT)
    # On a figure of one inch, fractions are inches; saving with a tight box keeps all that lies outside of it.
    figure = Figure(figsize=(1, 1), facecolor="white")
    axes, bar = figure.add_axes((0, 0, width, height)), figure.add_axes((width + 0.15, 0, 0.16, height))
    axes.set_xlim(0, len(matrix.tasks))
    axes.set_ylim(len(rows), 0)
    _draw_cells(axes, matrix.values[rows], small=small)
    draw_bar(bar, matrix.metric)
    _outline_learnt(axes, rows)
    _label(axes, matrix, rows, title)
    return figure


def _draw_cells(axes: Axes, values: Values, *, small: bool) -> None:
    from matplotlib import colormaps

    viridis = colormaps["viridis"]
    axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=viridis, vmin=0, vmax=1, edgecolors="white", linewidth=0.5 if small else 2
    )
    for (row, column), value in np.ndenumerate(values):
        if not small and not np.isnan(value):
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{value:.3f}",
                ha="center",
                va="center_baseline",
                color=readable_on(viridis(float(value))),
                fontsize=10,
            )


def draw_bar(bar: Axes, metric: str) -> None:
    """The colour scale, as shapes: matplotlib's own is a bitmap, which a page that may load nothing does not show."""
    steps = np.linspace(0, 1, 65)
    bar.pcolormesh([0, 1], steps, steps[:-1, None], cmap="viridis", vmin=0, vmax=1, edgecolors="face", linewidth=0.3)
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    bar.set_ylabel(safe(metric.replace("_", " ")), fontsize=9, color=INK, parse_math=False)
    bar.tick_params(length=0, labelsize=8, colors=INK)
    bar.set_frame_on(False)


def readable_on(colour: tuple[float, ...]) -> str:
    """White or ink, whichever has more contrast on a colour (relative luminance, WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    on_white, on_ink = 1.05 / (luminance + 0.05), (luminance + 0.05) / (_INK_LUMINANCE + 0.05)
    return "white" if on_white > on_ink else INK


def _outline_learnt(axes: Axes, rows: list[int]) -> None:
    """Frame the score on each task just after it was learnt: forgetting is read downwards from there."""
    from matplotlib.patches import Rectangle

    for position, row in enumerate(rows):
        if row > 0:
            frame = Rectangle((row - 1 + 0.04, position + 0.06), 0.92, 0.88, fill=False, edgecolor=INK, linewidth=1.4)
            axes.add_patch(frame)


def _label(axes: Axes, matrix: ScoreMatrix, rows: list[int], title: str) -> None:
    every = -(-len(matrix.tasks) // _MOST_NAMED)
    columns, lines = np.arange(0, len(matrix.tasks), every), np.arange(0, len(rows), every)
    axes.set_xticks(columns + 0.5)
    axes.set_yticks(lines + 0.5)
    # Long names would run into each other, so they are turned.
    names = [safe(matrix.tasks[column]) for column in columns]
    small = len(matrix.tasks) > _MOST_NUMBERED
    turned = small or max(map(len, names)) > 10
    rotation, align = (90, "center") if small else (30, "left")
    rotation, align = (rotation, align) if turned else (0, "center")
    axes.set_xticklabels(names, rotation=rotation, ha=align, parse_math=False)
    axes.set_yticklabels([safe(matrix.row_labels[rows[line]]) for line in lines], parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8 if small else 10, colors=INK)
    axes.set_facecolor("white")
    axes.annotate(
        "framed: the task just learnt",
        (0, 0),
        (0, -6),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=GREY,
    )
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    if title:
        axes.set_title(safe(title), loc="left", fontsize=12, fontweight="bold", color=INK, pad=14, parse_math=False)
