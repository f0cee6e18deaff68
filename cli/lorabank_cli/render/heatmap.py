"""The score matrix in the terminal: a colour per value, or plain numbers where there is no colour."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from lorabank.core.escaping import safe
from lorabank_cli.render.text import fit, width

_STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five points of the viridis scale, dark to light; readable with every common colour blindness."""


def heatmap(
    tasks: Sequence[str], values: Sequence[Sequence[float | None]], *, color: bool, limit: int | None = None
) -> str:
    """Rows: after each task; columns: on each task.

    Args:
        tasks: T names.
        values: T+1 rows of T scores in 0..1, row 0 of the untrained base; None where nothing was measured.
        color: Whether to colour the cells.
        limit: Terminal width; names that do not fit give way to their numbers.

    Returns:
        Lines; rows without any value are left out.
    """
    labels = ["0 (base)", *(f"{i} {safe(name)}" for i, name in enumerate(tasks, 1))]
    shown = [(label, row) for label, row in zip(labels, values, strict=True) if any(v is not None for v in row)]
    left = max([width("after \\ on"), *(width(label) for label, _ in shown)])
    names = [safe(name) for name in tasks]
    if limit is not None and left + sum(max(6, width(name)) + 1 for name in names) > limit:
        names = [str(i) for i in range(1, len(tasks) + 1)]
    columns = [max(6, width(name)) for name in names]
    lines = [" ".join([fit("after \\ on", left), *(_right(n, c) for n, c in zip(names, columns, strict=True))])]
    for label, row in shown:
        cells = [_cell(value, size, color) for value, size in zip(row, columns, strict=True)]
        lines.append(" ".join([fit(label, left), *cells]).rstrip())
    return "\n".join(lines)


def _right(text: str, columns: int) -> str:
    return " " * (columns - width(text)) + text


def _cell(value: float | None, columns: int, color: bool) -> str:
    if value is None:
        return " " * columns
    text = f"{value:.4f}".rjust(columns)
    if not color:
        return text
    rgb = shade(value)
    dark = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 140  # brightness of Rec. 601, in 0..255
    return click.style(text, fg="bright_white" if dark else "black", bg=rgb if _truecolor() else cube(rgb))


def shade(value: float) -> tuple[int, int, int]:
    """The colour of a score in 0..1; values outside take the nearest end."""
    place = min(max(value, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    part = place - index
    r, g, b = (round(a + (z - a) * part) for a, z in zip(_STOPS[index], _STOPS[index + 1], strict=True))
    return r, g, b


def cube(rgb: tuple[int, int, int]) -> int:
    """The nearest colour of the 6 x 6 x 6 cube of 256-colour terminals (numbers 16 to 231)."""
    levels = (0, 95, 135, 175, 215, 255)
    r, g, b = (min(range(6), key=lambda i: abs(levels[i] - part)) for part in rgb)
    return 16 + 36 * r + 6 * g + b


def _truecolor() -> bool:
    return os.environ.get("COLORTERM") in {"truecolor", "24bit"}
