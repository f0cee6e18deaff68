"""The lineage of adapters as a graph: which were trained on top of which, and which answer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorabank.components.colours import SERIES, series
from lorabank.components.markup import element, figure

_ROW, _COLUMN = 26.0, 22.0
_CHARACTER = 7.4
"""About the width of a character of a task's name."""
_LONGEST = 34
"""Characters of a task's name."""


@dataclass(frozen=True)
class Node:
    """A task with its adapter.

    Attributes:
        name: What stands beside it.
        parents: Places of the nodes whose adapters were active while it was trained, all before its own.
    """

    name: str
    parents: tuple[int, ...] = ()


def lineage(nodes: Sequence[Node], groups: Mapping[str, Sequence[int]], *, caption: str) -> Markup:
    """A row for each task from the first to the last; arcs to its parents on the left, compositions on the right.

    Arcs that follow from others are left out: where task 3 was trained beside 1 and 2, and 2 beside 1, the arc from 3
    to 1 is.

    Args:
        nodes: In the order in which they were learnt.
        groups: Composition to the places of its members.
        caption: What the graph shows.
    """
    drawn = essential(nodes)
    deepest = max((place - parent for place, parents in enumerate(drawn) for parent in parents), default=1)
    left = 14.0 + _bulge(deepest)
    names = [_short(f"{place}  {node.name}") for place, node in enumerate(nodes, start=1)]
    right = left + 24 + _CHARACTER * max(map(len, names), default=0)
    width, height = right + _COLUMN * len(groups) + 8, _ROW * len(nodes) + 8
    parts = [_arc(left, parent, place) for place, parents in enumerate(drawn) for parent in parents]
    parts += [
        part
        for number, members in enumerate(groups.values())
        for part in _members(right + _COLUMN * (number + 0.5), sorted(members), number)
    ]
    for place, name in enumerate(names):
        parts.append(element("circle", cx=left, cy=_y(place), r=4.5, class_="node"))
        parts.append(element("text", name, x=left + 12, y=_y(place) + 4))
    svg = element(
        "svg", *parts, viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, role="img", aria_label=caption
    )
    named = [
        element("li", _swatch(number), element("span", f"{name}: {len(members)} of {len(nodes)} tasks"))
        for number, (name, members) in enumerate(groups.items())
    ]
    return figure(svg, element("ul", *named, class_="legend") if named else None, caption=caption, kind="lineage")


def essential(nodes: Sequence[Node]) -> list[tuple[int, ...]]:
    """Of each node the parents that are not ancestors of another of its parents.

    Raises:
        ValueError: A parent does not stand before its child.
    """
    ancestors: list[frozenset[int]] = []
    found = []
    for place, node in enumerate(nodes):
        if any(not 0 <= parent < place for parent in node.parents):
            raise ValueError(f"a parent of node {place} does not stand before it")
        implied = frozenset().union(*(ancestors[parent] for parent in node.parents))
        found.append(tuple(sorted(set(node.parents) - implied)))
        ancestors.append(implied | frozenset(node.parents))
    return found


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _y(place: int) -> float:
    return _ROW * (place + 0.5) + 4


def _bulge(distance: int) -> float:
    """How far an arc over so many rows reaches to the left; a neighbour is joined by a straight line."""
    return 0.0 if distance == 1 else min(12.0 + 6.0 * distance, 90.0)


def _arc(left: float, parent: int, place: int) -> Markup:
    reach = left - _bulge(place - parent)
    start, end = _y(parent), _y(place)
    return element(
        "path", d=f"M{left:g} {start:g}C{reach:g} {start:g} {reach:g} {end:g} {left:g} {end:g}", class_="edge"
    )


def _members(x: float, members: Sequence[int], number: int) -> list[Markup]:
    if not members:
        return []
    ends = {"y1": _y(members[0]), "y2": _y(members[-1])}
    dots = [element("circle", cx=x, cy=_y(place), r=4.5, class_="dot") for place in members]
    return [element("g", element("line", x1=x, x2=x, **ends, class_="line"), *dots, class_=series(number % SERIES))]


def _swatch(number: int) -> Markup:
    dot = element("g", element("circle", cx=7, cy=7, r=4.5, class_="dot"), class_=series(number))
    return element("svg", dot, viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")
