"""What plots of lines and points have in common: colours that everybody can tell apart, names that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorabank.core.escaping import safe
from lorabank.evaluation.plots.heatmap import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a8468a", "#b07800", "#2a8fc9", "#1f2328")
"""After Okabe and Ito (2008), the light ones darkened so that names can be read on white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One for each colour, for who does not see it."""

_LONGEST = 22


def short(name: str) -> str:
    """A name as it fits beside a line."""
    return safe(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…")


def apart(places: Sequence[float], *, least: float) -> list[float]:
    """Places in [0, 1] moved until each is ``least`` from the next, as near to where they were as that allows.

    Places that touch become one block around their mean (pool adjacent violators).

    Args:
        places: n places in any order.
        least: Distance of two places; more than fit into [0, 1] begin at 0 and end beyond 1.
    """
    order = sorted(range(len(places)), key=lambda k: places[k])
    blocks: list[tuple[float, int]] = []  # the mean of the wished first places, and how many stand one above the other
    for place in (places[k] for k in order):
        wish, count = place, 1
        while blocks and blocks[-1][0] + blocks[-1][1] * least > wish:
            below, under = blocks.pop()
            wish = (below * under + (wish - under * least) * count) / (under + count)
            count += under
        blocks.append((wish, count))
    spread = np.array([first + step * least for first, count in blocks for step in range(count)])
    limits = np.arange(len(places)) * least
    spread = np.maximum(np.minimum(spread, 1 - limits[::-1]), limits)
    moved = [0.0] * len(places)
    for k, place in zip(order, spread, strict=True):
        moved[k] = float(place)
    return moved


def plain_axes(axes: Axes) -> None:
    """A faint grid, no frame and no ticks."""
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
