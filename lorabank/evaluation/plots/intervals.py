"""Means with their intervals, one line for each: what a table of a sequence says at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank.evaluation.plots.heatmap import FAINT, INK, Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def interval_plot(means: Mapping[str, tuple[float, float | None]], title: str) -> Plot:
    """Means as points, the first on top.

    Args:
        means: Name to a mean and half of its interval, None where there is none.
        title: What they are.
    """
    return Plot(lambda: _draw(means, title))


def _draw(means: Mapping[str, tuple[float, float | None]], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 0.6 + 0.34 * len(means)), facecolor="white")
    axes = figure.add_subplot()
    for line, (mean, half) in enumerate(means.values()):
        axes.errorbar([mean], [line], xerr=half, fmt="o", color="#31688e", markersize=5, capsize=3)
        axes.annotate(
            f"{mean:.3f}", (mean, line), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK
        )
    axes.set_yticks(range(len(means)))
    axes.set_yticklabels([safe(name) for name in means], parse_math=False)
    axes.set_ylim(len(means) - 0.5, -0.7)
    axes.margins(x=0.2)
    axes.set_xlabel(safe(title), fontsize=9, color=INK, parse_math=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
