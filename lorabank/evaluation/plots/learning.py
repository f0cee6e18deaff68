"""How a training went, as PNG and SVG: the loss by step, the held-out rows beside it, and the learning rate below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank.evaluation.plots.heatmap import GREY, INK, Plot
from lorabank.evaluation.plots.lines import COLOURS, plain_axes
from lorabank.models.facts.curves import LearningCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_plot(curve: LearningCurve, *title: str) -> Plot:
    """The curves of a training.

    Args:
        curve: With one point at least.
        title: Lines above the plot.
    """
    return Plot(lambda: _draw(curve, title))


def _draw(curve: LearningCurve, title: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.6), facecolor="white")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    loss.plot(
        curve.steps, curve.losses, color=COLOURS[0], linewidth=1.4, label="training rows", **_marked(curve.steps)
    )
    if curve.held:
        _draw_held(loss, curve)
    loss.set_ylabel("loss", fontsize=9, color=INK)
    loss.set_ylim(bottom=0)
    rate.plot(curve.steps, curve.learning_rates, color=GREY, linewidth=1.2, **_marked(curve.steps))
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate.yaxis.get_offset_text().set_fontsize(8)
    rate.set_ylabel("learning\nrate", fontsize=9, color=INK)
    rate.set_xlabel("optimizer steps", fontsize=9, color=INK)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, rate):
        plain_axes(axes)
    if title:
        text = "\n".join(map(safe, title))
        loss.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)
    return figure


def _draw_held(axes: Axes, curve: LearningCurve) -> None:
    """The held-out rows' loss, and the step that was kept."""
    held = curve.held
    assert held is not None
    axes.plot(held.steps, held.losses, "-s", color=COLOURS[1], markersize=3.5, linewidth=1.4, label="held-out rows")
    axes.axvline(held.best, color=GREY, linewidth=0.9, linestyle=":")
    late = 2 * held.best > curve.steps[0] + curve.steps[-1]  # there is room on the other side
    axes.annotate(
        f"kept: step {held.best}",
        (held.best, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if late else 3, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=8,
        color=GREY,
    )
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)


def _marked(steps: Sequence[int]) -> dict[str, str]:
    """A line of one point is not seen without a mark."""
    return {"marker": "o"} if len(steps) == 1 else {}
