"""Colours of scores and lines as classes of the stylesheet."""

from __future__ import annotations

import math

LEVELS = 50
"""Steps of the scale of scores: two scores that differ by 0.02 have different colours."""

SERIES = 7
"""Lines that can be told apart; each has a marker of its own too."""

_VIRIDIS = (
    "440154", "48186a", "472d7b", "424086", "3b528b", "33638d", "2c728e", "26828e", "21918c",
    "1fa088", "28ae80", "3fbc73", "5ec962", "84d44b", "addc30", "d8e219", "fde725",
)  # fmt: skip
"""matplotlib's viridis at equal distances: equally bright steps, for colour-blind eyes too."""


def level(value: float) -> str:
    """Class of a score in [0, 1], whatever lies outside being cut; of NaN that of a missing score."""
    return "none" if math.isnan(value) else f"v{round(min(max(value, 0.0), 1.0) * LEVELS)}"


def series(number: int) -> str:
    """Classes of the line with a number, from 0: after ``SERIES`` the colours repeat with long dashes, then short."""
    colour, again = f"s{number % SERIES}", min(number // SERIES, 2)
    return f"{colour} dash{again}" if again else colour


def scale_rules() -> str:
    """Rules of the stylesheet for each `level`: a background, and the text on it in black or white, as can be read."""
    return "\n".join(
        f".v{k} {{ background: {hexadecimal(colour)}; color: {ink_on(colour)}; }}"
        for k in range(LEVELS + 1)
        for colour in [colour_at(k / LEVELS)]
    )


def colour_at(value: float) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a score in [0, 1]."""
    place = value * (len(_VIRIDIS) - 1)
    below = min(int(place), len(_VIRIDIS) - 2)
    one, two = (_parts(_VIRIDIS[k]) for k in (below, below + 1))
    red, green, blue = (a + (b - a) * (place - below) for a, b in zip(one, two, strict=True))
    return red, green, blue


def hexadecimal(colour: tuple[float, float, float]) -> str:
    """``#rrggbb``."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def ink_on(colour: tuple[float, float, float]) -> str:
    """Black or white, whichever has the higher contrast: 4.58 or more on any colour."""
    return "#000" if contrast(colour, (0, 0, 0)) >= contrast(colour, (1, 1, 1)) else "#fff"


def contrast(one: tuple[float, float, float], two: tuple[float, float, float]) -> float:
    """Contrast ratio of two colours, from 1 to 21, after WCAG 2.2."""
    light, dark = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[float, float, float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _parts(text: str) -> tuple[float, float, float]:
    red, green, blue = (int(text[k : k + 2], 16) / 255 for k in (0, 2, 4))
    return red, green, blue
