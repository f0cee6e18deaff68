"""The graph of adapters: arcs that say something, and compositions through their members."""

from __future__ import annotations

from itertools import combinations

import pytest

from lorabank.components.lineage import Node, essential, lineage
from tests.unit.components.page import Page


def reached(parents: list[tuple[int, ...]]) -> set[tuple[int, int]]:
    """Every pair of a node and an ancestor, by walking."""
    found: set[tuple[int, int]] = set()
    for node in range(len(parents)):
        left = list(parents[node])
        while left:
            ancestor = left.pop()
            found.add((node, ancestor))
            left += parents[ancestor]
    return found


@pytest.mark.parametrize(
    ("parents", "wanted"),
    [
        ([(), (0,), (0, 1), (0, 1, 2)], [(), (0,), (1,), (2,)]),  # each beside all before it: a chain
        ([(), (), (0, 1)], [(), (), (0, 1)]),
        ([(), (0,), (0,), (0, 1, 2)], [(), (0,), (0,), (1, 2)]),
        ([(), (), (), ()], [(), (), (), ()]),
    ],
)
def test_arcs_that_follow_from_others_are_left_out(parents: list[tuple[int, ...]], wanted: list) -> None:
    found = essential([Node("n", one) for one in parents])
    assert found == wanted
    assert reached(found) == reached(parents)


def test_no_arc_can_be_spared() -> None:
    """Of every graph of four nodes, the arcs that are left reach what all did, and not with one arc less."""
    pairs = list(combinations(range(4), 2))
    for chosen in range(2 ** len(pairs)):
        parents: list[tuple[int, ...]] = [()] * 4
        for k, (one, two) in enumerate(pairs):
            if chosen >> k & 1:
                parents[two] = (*parents[two], one)
        found = essential([Node("n", one) for one in parents])
        assert reached(found) == reached(parents)
        for node, own in enumerate(found):
            for parent in own:
                fewer = [tuple(p for p in one if (k, p) != (node, parent)) for k, one in enumerate(found)]
                assert reached(fewer) != reached(parents)


def test_a_parent_stands_before_its_child() -> None:
    with pytest.raises(ValueError, match="parent of node 0"):
        essential([Node("a", (1,)), Node("b")])


def test_tasks_and_compositions_are_named() -> None:
    page = Page(lineage([Node("one"), Node("<two>", (0,))], {"mix": [0, 1]}, caption="Lineage"))
    assert page.texts == ["Lineage", "1  one", "2  <two>", "mix: 2 of 2 tasks"]
    assert sum(one["class"] == "edge" for one in page.all("path")) == 1
    assert page.all("svg")[0]["aria-label"] == "Lineage"
    assert Page(lineage([], {}, caption="nothing")).texts == ["nothing"]
