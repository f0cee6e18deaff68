"""Round numbers for the axes of a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``.

    Args:
        low: Lower end.
        high: Upper end, not below it.
        most: How many there are at most, from 2 on.

    Returns:
        Ascending; ``[low]`` alone where both ends are one.
    """
    if high <= low:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (size * k for k in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [k * step for k in range(first, last + 1)] or [low]


def as_text(values: Sequence[float]) -> list[str]:
    """Each with as many decimals as the ticks need, or all in scientific notation."""
    largest = max(map(abs, values), default=0.0)
    if largest and not 1e-3 <= largest < 1e5:
        return ["0" if value == 0 else f"{value:.3g}" for value in values]
    decimals = next((d for d in range(6) if all(abs(value - round(value, d)) < 1e-9 for value in values)), 6)
    return [f"{value + 0.0:.{decimals}f}" for value in values]
