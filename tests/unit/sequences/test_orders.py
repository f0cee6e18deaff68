"""Random orders, and an analysis of variance that was worked out by hand."""

from __future__ import annotations

from itertools import permutations

import pytest

from lorabank.sequences.orders import order_effect, with_random
from lorabank.sequences.table import markdown, order_cells, table_rows
from tests.unit.sequences.test_table import run

TASKS = ("a", "b", "c")


def test_random_orders_stand_behind_the_given_ones_and_never_twice() -> None:
    given = (("b", "a", "c"),)
    found = with_random(given, TASKS, 3, seed=0)
    assert found[:1] == given
    assert len(set(found)) == len(found) == 4
    assert all(sorted(order) == list(TASKS) for order in found)
    assert with_random(given, TASKS, 2, seed=0) == found[:3], "more of them keep those that are there"
    assert with_random(given, TASKS, 3, seed=1) != found
    assert with_random((), TASKS, 1, seed=0)[0] == TASKS


def test_no_more_orders_than_there_are() -> None:
    assert set(with_random((), TASKS, 99, seed=0)) == set(permutations(TASKS))


def test_the_effect_of_the_order_by_hand() -> None:
    """Means 0.5 and 0.7; between 2 (0.01 + 0.01) / 1 = 0.04, within 0.0016 / 2, so (0.04 - 0.0008) / 2."""
    found = order_effect({1: [0.48, 0.52], 2: [0.68, 0.72]})
    assert found is not None
    assert found.means == {1: pytest.approx(0.5), 2: pytest.approx(0.7)}
    assert found.spread == pytest.approx(0.2 / 2**0.5)
    assert found.due_to_order == pytest.approx(0.0196**0.5)


def test_what_the_seeds_explain_is_not_due_to_the_order() -> None:
    found = order_effect({1: [0.4, 0.6], 2: [0.45, 0.57]})
    assert found is not None
    assert found.due_to_order == 0.0
    assert found.spread > 0


def test_unequal_numbers_of_seeds() -> None:
    """Three seeds and one: grand mean 0.5, between 3 * 0.01 + 0.09, within 0.02 / 2, n (4 - 10 / 4) / 1 = 1.5."""
    found = order_effect({1: [0.3, 0.4, 0.5], 2: [0.8]})
    assert found is not None
    assert found.due_to_order == pytest.approx(((0.12 - 0.01) / 1.5) ** 0.5)


def test_one_seed_does_not_say_what_is_due_to_the_order() -> None:
    found = order_effect({1: [0.5], 2: [0.7], 3: [0.6]})
    assert found is not None
    assert (found.spread, found.due_to_order) == (pytest.approx(0.1), None)
    assert order_effect({1: [0.5, 0.6]}) is None
    assert order_effect({1: [0.5], 2: [None]}) is None
    # mean 0.6, half 4.3027 * 0.1 / sqrt(3)
    assert order_cells(found) == ["0.600 ± 0.248", "0.100", "", "0.500 (order 1)", "0.700 (order 2)"]


def test_the_page_shows_it_with_several_orders_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabank.sequences.table.card_lines", lambda card: [])
    one, other = (run(order, 0, "as-trained", [score, score], ("a", "b")) for order, score in ((1, 0.5), (2, 0.7)))
    page = markdown("name", {}, table_rows([one, other]))
    assert "## Average accuracy by order" in page
    assert "| 0.500 (order 1) | 0.700 (order 2) |" in page
    assert "by order" not in markdown("name", {}, table_rows([one]))
