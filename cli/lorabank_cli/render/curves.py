"""How a training went, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lorabank.models.facts.curves import LearningCurve

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 40


def course(shown: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    """Loss, learning rate and held-out rows of a training, as `show` has it; nothing where it was not recorded."""
    curve = None if shown is None else LearningCurve.of(shown)
    if curve is None or not curve.steps:
        return []
    rates, held = curve.learning_rates, curve.held
    named = [f"{rate:.3g}" for rate in dict.fromkeys((rates[0], max(rates), rates[-1]))]
    items: list[tuple[str, object]] = [
        ("loss", f"{curve.losses[0]:.4g} to {curve.losses[-1]:.4g} in {curve.steps[-1]} steps"),
        ("", spark(curve.losses)),
        (
            "learning rate",
            named[0] if len(named) == 1 else f"from {named[0]}, at most {max(rates):.3g}, to {rates[-1]:.3g}",
        ),
    ]
    if held is None:
        return items
    best = held.steps.index(held.best)
    ended = f", stopped after {held.steps[-1]}" if held.stopped else ""
    return [
        *items,
        ("held-out rows", f"{held.rows} of the training file, measured every {held.every} steps"),
        ("their loss", f"{held.losses[0]:.4g} to {held.losses[-1]:.4g}, lowest {held.losses[best]:.4g}"),
        ("", spark(held.losses)),
        ("kept", f"step {held.best}{ended}: accuracy {held.accuracies[best]:.4f} on them"),
    ]


def spark(values: Sequence[float], columns: int = _COLUMNS) -> str:
    """Values as bars from the smallest to the largest; of more than there are columns, the means of equal parts."""
    width = min(columns, len(values))
    edges = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in means)
