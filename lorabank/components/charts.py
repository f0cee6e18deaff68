"""Line charts as SVG with real text: averages through time, learning curves, bands over runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorabank.components.colours import SERIES, series
from lorabank.components.markup import element, figure, fold, head_cell, row_head, table
from lorabank.components.ticks import as_text, ticks

_WIDTH, _HEIGHT = 480.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 12.0, 44.0
_MOST_ROWS = 60
"""Rows of the table beside a chart; of more every k-th, and the last."""
_LONGEST = 14
"""Characters of a name below the axis."""
_MOST_MARKED = 60
"""Points of a line that get a marker."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it shows.
        x: n places in ascending order.
        y: n values; NaN leaves a gap.
        low: Lower edge of a band around it [n], or None.
        high: Upper edge, or None.
        faint: Drawn in grey, without a place of its own in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Axes:
    """What the axes of a chart are.

    Attributes:
        x: Name of the x axis.
        y: Name of the y axis.
        least: Lowest value of the y axis; None for that of the lines.
        most: Highest value, or None.
        places: Names of places of the x axis, that stand there instead of numbers; some are left out where there are
            too many.
        mark: A place of the x axis that is marked by a vertical line, with what it is; None for none.
    """

    x: str
    y: str
    least: float | None = None
    most: float | None = None
    places: Mapping[float, str] | None = None
    mark: tuple[float, str] | None = None


def line_chart(lines: Sequence[Line], axes: Axes, *, caption: str, told: str = "", listed: bool = True) -> Markup:
    """A chart in a figure, with a legend and a table of its values.

    Args:
        lines: With one finite point at least in all; of those that are not faint at most 21 look different.
        axes: What the axes are.
        caption: What the chart shows.
        told: What is to be seen in it, in words.
        listed: Whether the values stand in a table that opens below it; without it another table must show them.
    """
    bold = [line for line in lines if not line.faint]
    svg = _svg(lines, axes, f"{caption}. {told}" if told else caption)
    legend = element("ul", *(_entry(k, line.name) for k, line in enumerate(bold)), class_="legend")
    values = fold("The values of this chart", _listed(lines, axes, caption)) if listed else None
    return figure(
        svg, legend if len(bold) > 1 or len(lines) > len(bold) else None, values, caption=caption, kind="chart"
    )


@dataclass(frozen=True)
class _Frame:
    """From values to places of the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((value - low) / (high - low) if high > low else 0.5)

    def up(self, value: float) -> float:
        low, high = self.y
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (min(max(value, low), high) - low) / (high - low)


def _svg(lines: Sequence[Line], axes: Axes, words: str) -> Markup:
    frame = _frame(lines, axes)
    bold = [line for line in lines if not line.faint]
    parts = [*_grid(frame, axes, lines)]
    parts += [_band(frame, line, series(k)) for k, line in enumerate(bold) if line.low is not None]
    parts += [_line(frame, line, "faint", None) for line in lines if line.faint]
    parts += [_line(frame, line, series(k), k % SERIES) for k, line in enumerate(bold)]
    if axes.mark is not None:
        parts += _mark(frame, *axes.mark)
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        width=_WIDTH,
        height=_HEIGHT,
        role="img",
        aria_label=words,
    )


def _frame(lines: Sequence[Line], axes: Axes) -> _Frame:
    xs = [float(x) for line in lines for x in line.x]
    edges = (edge for line in lines for edge in (line.y, line.low or (), line.high or ()))
    ys = [float(y) for edge in edges for y in edge if math.isfinite(y)]
    low = min(ys) if axes.least is None else axes.least
    high = max(ys) if axes.most is None else axes.most
    if high <= low:
        low, high = low - 0.5, low + 0.5
    found = ticks(low, high)
    low = min(low, found[0]) if axes.least is None else low
    return _Frame((min(xs), max(xs)), (low, high))


def _grid(frame: _Frame, axes: Axes, lines: Sequence[Line]) -> list[Markup]:
    parts = []
    marks = ticks(*frame.y)
    for value, name in zip(marks, as_text(marks), strict=True):
        y = frame.up(value)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", name, x=_LEFT - 6, y=y + 4, text_anchor="end"))
    for value, name in _places(frame, axes, lines):
        x = frame.across(value)
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid"))
        inside = min(max(x, _half(name)), _WIDTH - _half(name))
        parts.append(element("text", name, x=inside, y=_HEIGHT - _BOTTOM + 16, text_anchor="middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(element("text", axes.x, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 8, text_anchor="middle"))
    turned = f"translate(13 {middle:g}) rotate(-90)"
    parts.append(element("text", axes.y, transform=turned, text_anchor="middle"))
    return parts


def _half(name: str) -> float:
    """About half of the width of a name."""
    return 3.6 * len(name)


def _places(frame: _Frame, axes: Axes, lines: Sequence[Line]) -> list[tuple[float, str]]:
    if axes.places is None:
        whole = all(float(x).is_integer() for line in lines for x in line.x)
        marks = [mark for mark in ticks(*frame.x, most=7) if not whole or float(mark).is_integer()]
        inside = [mark for mark in marks if frame.x[0] <= mark <= frame.x[1]] or [frame.x[0]]
        return list(zip(inside, as_text(inside), strict=True))
    names = {
        place: name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for place, name in axes.places.items()
    }
    longest = max(map(len, names.values()), default=1)
    fit = max(2, int((_WIDTH - _LEFT - _RIGHT) / (7.0 * longest + 10)))
    every = -(-len(names) // fit)
    return list(names.items())[::every]


def _line(frame: _Frame, line: Line, colour: str, marker: int | None) -> Markup:
    """The pieces of a line between its gaps, and its points."""
    path, pen = [], "M"
    points = []
    for x, y in zip(line.x, line.y, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        across, up = frame.across(x), frame.up(y)
        path.append(f"{pen}{across:.1f} {up:.1f}")
        points.append((across, up))
        pen = "L"
    marked = marker is not None and len(points) <= _MOST_MARKED
    dots = [element("path", d=_marker(marker or 0, *point), class_="dot") for point in points] if marked else []
    return element(
        "g", element("title", line.name), element("path", d="".join(path), class_="line"), *dots, class_=colour
    )


def _band(frame: _Frame, line: Line, colour: str) -> Markup:
    """What lies between both edges, in one piece for each run of known points."""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for x, low, high in zip(line.x, line.low or (), line.high or (), strict=True):
        if math.isfinite(low) and math.isfinite(high):
            pieces[-1].append((frame.across(x), frame.up(low), frame.up(high)))
        elif pieces[-1]:
            pieces.append([])
    path = ""
    for piece in filter(None, pieces):
        around = [(x, high) for x, _, high in piece] + [(x, low) for x, low, _ in reversed(piece)]
        path += "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in around) + "Z"
    return element("path", d=path, class_=f"band {colour}")


def _mark(frame: _Frame, place: float, name: str) -> list[Markup]:
    x = frame.across(place)
    late = x > _WIDTH / 2
    return [
        element("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="mark"),
        element("text", name, x=x - 5 if late else x + 5, y=_TOP + 12, text_anchor="end" if late else "start"),
    ]


def _marker(number: int, x: float, y: float) -> str:
    """The path of one of seven markers around a point."""
    outlines = (
        "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
        "m-3 -3h6v6h-6z",
        "m0 -4l4 7h-8z",
        "m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
        "m0 4l4 -7h-8z",
        "m-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
        "m-4 -2l2 -2l2 2l2 -2l2 2l-2 2l2 2l-2 2l-2 -2l-2 2l-2 -2l2 -2z",
    )
    return f"M{x:.1f} {y:.1f}{outlines[number]}"


def _entry(number: int, name: str) -> Markup:
    swatch = element(
        "svg",
        element(
            "g",
            element("path", d="M0 7h26", class_="line"),
            element("path", d=_marker(number % SERIES, 13, 7), class_="dot"),
            class_=series(number),
        ),
        viewBox="0 0 26 14",
        width=26,
        height=14,
        aria_hidden="true",
    )
    return element("li", swatch, element("span", name))


def _listed(lines: Sequence[Line], axes: Axes, caption: str) -> Markup:
    """The values, with both edges of a band."""
    places = sorted({float(x) for line in lines for x in line.x})
    kept = places[:: -(-len(places) // _MOST_ROWS)]
    kept += places[-1:] if kept[-1] != places[-1] else []
    names = axes.places or {}
    columns = [dict(zip(map(float, line.x), _values(line), strict=True)) for line in lines]
    rows = [
        element(
            "tr",
            row_head(names.get(place, f"{place:g}")),
            *(element("td", column.get(place, "–"), class_="n") for column in columns),
        )
        for place in kept
    ]
    head = [head_cell(axes.x), *(head_cell(line.name, numeric=True) for line in lines)]
    return table(caption, Markup("").join(head), Markup("").join(rows))


def _values(line: Line) -> list[str]:
    if line.low is None or line.high is None:
        return [_number(y) for y in line.y]
    edges = zip(line.y, line.low, line.high, strict=True)
    return [f"{_number(y)} [{_number(low)}, {_number(high)}]" for y, low, high in edges]


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"
