"""What is learnt against what is forgotten: one point for each way to train and to answer, with the Pareto front.

After "LoRA Learns Less and Forgets Less", https://arxiv.org/abs/2405.09673: a single score hides whether a method
forgets little because it protects what it knows or because it learns little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lorabank.evaluation.plots.heatmap import GREY, INK, Plot
from lorabank.evaluation.plots.lines import COLOURS, MARKERS, apart, plain_axes, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """One result.

    Attributes:
        name: What it is called beside its point.
        learnt: Mean score on each task just after it was learnt.
        forgotten: Mean loss on earlier tasks up to the end; less is better.
        learnt_half: Half of the 95 % interval, None of a single run.
        forgotten_half: The same.
    """

    name: str
    learnt: float
    forgotten: float
    learnt_half: float | None = None
    forgotten_half: float | None = None


def pareto_front(points: Sequence[Point]) -> tuple[int, ...]:
    """Which points no other one beats: none learns as much and forgets less, or learns more and forgets as little."""

    def beaten(point: Point) -> bool:
        return any(
            other.learnt >= point.learnt
            and other.forgotten <= point.forgotten
            and (other.learnt, other.forgotten) != (point.learnt, point.forgotten)
            for other in points
        )

    return tuple(k for k, point in enumerate(points) if not beaten(point))


def tradeoff_plot(points: Sequence[Point]) -> Plot:
    """The points, at least one, with their intervals; the front is joined by a line, the names stand to the right."""
    return Plot(lambda: _draw(points))


def _draw(points: Sequence[Point]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, max(3.8, 0.24 * len(points) + 0.6)), facecolor="white")
    axes = figure.add_subplot()
    front = pareto_front(points)
    for k, point in enumerate(points):
        best = k in front
        axes.errorbar(
            [point.forgotten],
            [point.learnt],
            xerr=point.forgotten_half,
            yerr=point.learnt_half,
            fmt=MARKERS[(k + k // len(MARKERS)) % len(MARKERS)],
            color=COLOURS[k % len(COLOURS)],
            markersize=8 if best else 6,
            markerfacecolor=COLOURS[k % len(COLOURS)] if best else "white",
            elinewidth=0.8,
            capsize=2,
            zorder=3,
        )
    steps = sorted((points[k].forgotten, points[k].learnt) for k in front)
    axes.plot(*zip(*steps, strict=True), color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.margins(0.12)
    plain_axes(axes)
    axes.set_xlabel("forgetting  (left is better)", fontsize=9, color=INK)
    axes.set_ylabel("learning accuracy  (up is better)", fontsize=9, color=INK)
    _name(axes, points, front)
    return figure


def _name(axes: Axes, points: Sequence[Point], front: Sequence[int]) -> None:
    """Each name at the right edge near the height of its point, joined to it by a thin line."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    heights = apart([(point.learnt - low) / (high - low) for point in points], least=0.062)
    for k, (point, height) in enumerate(zip(points, heights, strict=True)):
        axes.annotate(
            f"{short(point.name)}{' ★' if k in front else ''}",
            xy=(point.forgotten, point.learnt),
            xytext=(right + 0.04 * (right - axes.get_xlim()[0]), low + height * (high - low)),
            va="center",
            fontsize=8.5,
            color=COLOURS[k % len(COLOURS)],
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "alpha": 0.6, "shrinkB": 5},
            parse_math=False,
        )
    axes.annotate(
        "★ and filled: on the Pareto front",
        (0, 1),
        (0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color=GREY,
    )
