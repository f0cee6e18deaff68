"""Tables that are pictures: scores and counts in coloured cells, and a bar with its interval for a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from lorabank.components.colours import level
from lorabank.components.markup import element, head_cell, row_head, table

MOST_WIDE = 14
"""Columns whose cells hold three decimals under their names; more are headed by numbers and hold whole per cent."""

_BAR = 120.0
"""Width of a bar in units of the drawing, which has one for each pixel."""


def score_table(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    caption: str,
    corner: str = "",
    learnt: Sequence[int] | None = None,
    low: Sequence[Sequence[float | None]] | None = None,
    high: Sequence[Sequence[float | None]] | None = None,
) -> Markup:
    """A matrix of scores, each cell in its colour.

    Args:
        rows: n names.
        columns: m names.
        values: Scores in [0, 1], ``[n][m]``; None or NaN where nothing was measured.
        caption: What the table shows.
        corner: What the heads of rows and columns are.
        learnt: Of each row, how many of the first columns are outlined, as the tasks learnt so far are; None for none.
        low: Lower ends of the intervals ``[n][m]``, shown as the tooltip of a cell, or None.
        high: Upper ends, or None.
    """
    wide = len(columns) > MOST_WIDE
    heads = [head_cell(corner)]
    for number, name in enumerate(columns, start=1):
        heads.append(head_cell(number, numeric=True, title=name) if wide else head_cell(name, numeric=True))
    lines = []
    for number, (name, scores) in enumerate(zip(rows, values, strict=True)):
        cells = [
            _score_cell(
                score,
                known=learnt is not None and place < learnt[number],
                ends=(low[number][place], high[number][place]) if low is not None and high is not None else None,
                wide=wide,
            )
            for place, score in enumerate(scores)
        ]
        lines.append(element("tr", row_head(name), *cells))
    said = f"{caption}, in per cent" if wide else caption
    return table(said, Markup("").join(heads), Markup("").join(lines), kind="scores dense" if wide else "scores")


def _score_cell(
    score: float | None, *, known: bool, ends: tuple[float | None, float | None] | None, wide: bool
) -> Markup:
    if score is None or math.isnan(score):
        return element("td", "–", class_="none")
    shown = f"{100 * score:.0f}" if wide else f"{score:.3f}"
    told = f"{score:.4f}" if wide else None
    if ends is not None and all(end is not None and not math.isnan(end) for end in ends):
        told = f"{score:.4f}, 95 % interval {ends[0]:.3f} to {ends[1]:.3f}"
    return element("td", shown, class_=f"{level(score)} known" if known else level(score), title=told)


def count_table(
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    caption: str,
    corner: str,
    ends: Sequence[float | None] | None = None,
    end: str = "right",
) -> Markup:
    """A confusion table: how many rows of each kind were given each answer, coloured by their share of the row.

    Args:
        rows: n names of what was wanted.
        columns: m names of what was answered; a cell whose names are equal is outlined.
        counts: ``[n][m]``.
        caption: What the table shows.
        corner: What the heads of rows and columns are, for example ``wanted ↓ answered →``.
        ends: Shares of the rows that were right ``[n]``, as a last column; None for no such column.
        end: Head of that column.
    """
    wide = len(columns) > MOST_WIDE
    heads = [head_cell(corner)]
    for number, name in enumerate(columns, start=1):
        heads.append(head_cell(number, numeric=True, title=name) if wide else head_cell(name, numeric=True))
    heads += [] if ends is None else [head_cell(end, numeric=True)]
    lines = []
    for number, (name, line) in enumerate(zip(rows, counts, strict=True)):
        whole = max(sum(line), 1)
        cells = [
            element("td", count, class_=f"{level(count / whole) if count else 'none'}{' known' * (name == other)}")
            for other, count in zip(columns, line, strict=True)
        ]
        if ends is not None:
            share = ends[number]
            cells.append(element("td", "–" if share is None else f"{share:.3f}", class_="n"))
        shown = f"{number + 1} {name}" if wide else name
        lines.append(element("tr", row_head(shown), *cells))
    return table(
        caption,
        Markup("").join(heads),
        Markup("").join(lines),
        kind="scores counts dense" if wide else "scores counts",
    )


def bar(
    value: float | None, low: float | None = None, high: float | None = None, *, least: float = 0.0, most: float = 1.0
) -> Markup:
    """A small bar with its interval for a cell of a table; the cell beside it must hold the number.

    Args:
        value: Where the bar ends; nothing is drawn of None or NaN.
        low: Lower end of the interval, or None.
        high: Upper end, or None.
        least: What the left edge stands for. The bar begins at 0, or at the edge that is nearer to 0.
        most: What the right edge stands for, above ``least``.
    """
    if value is None or math.isnan(value):
        return Markup("")

    def place(one: float) -> float:
        return _BAR * (min(max(one, least), most) - least) / (most - least)

    start, end = sorted((place(0.0), place(value)))
    parts = [element("rect", x=start, y=4, width=max(end - start, 1.0), height=8, class_="bar")]
    if least < 0 < most:
        parts.append(element("line", x1=place(0.0), x2=place(0.0), y1=1, y2=15, class_="axis"))
    if low is not None and high is not None and not math.isnan(low + high):
        left, right = place(low), place(high)
        path = f"M{left:.1f} 8H{right:.1f}M{left:.1f} 5v6M{right:.1f} 5v6"
        parts.append(element("path", d=path, class_="whisker"))
    return element("svg", *parts, viewBox=f"0 0 {_BAR:g} 16", width=_BAR, height=16, class_="bar", aria_hidden="true")
