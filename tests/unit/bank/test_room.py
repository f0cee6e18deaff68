"""How many more tasks fit, against numbers computed by hand."""

from __future__ import annotations

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.room import Room, in_words, room_left


@pytest.fixture
def filled(bank, kit) -> Bank:
    """Two adapters of rank 8, of which the newest left 101 directions; each folder has the bytes of its files."""
    kit.add_task(bank, "a")
    kit.adapter = kit.adapter._replace(metrics={"directions_left": 101})
    kit.add_task(bank, "b", weight=2.0)
    return bank


def size_of(kit) -> int:
    return sum(map(len, kit.files(1.0, -2.0).values()))


def test_by_directions(filled) -> None:
    assert room_left(filled.snapshot()) == Room(12, 8, 101)  # 12 * 8 = 96 of 101
    assert in_words(Room(12, 8, 101)) == "12 more tasks of rank 8 fit"
    assert in_words(Room(1, 8, 9)) == "1 more task of rank 8 fits"


@pytest.mark.parametrize(("adapters", "more"), [(2, 0), (4, 2), (5.5, 3), (1, 0), (1000, 12)])
def test_by_bytes(filled, kit, adapters: float, more: int) -> None:
    """A budget of so many adapters, of which two are there."""
    budget = int(adapters * size_of(kit))
    assert room_left(filled.snapshot(), budget) == Room(more, 8, 101, budget - 2 * size_of(kit))


def test_what_a_later_task_stands_on_takes_room_after_its_own_task_went(filled, kit) -> None:
    below = filled.snapshot().adapter_of("a").digest
    kit.add_task(filled, "c", weight=3.0, context=(below,))
    filled.remove("a")
    assert room_left(filled.snapshot(), 10 * size_of(kit)) == Room(7, 8, 101, 7 * size_of(kit))
    filled.remove("c")
    assert room_left(filled.snapshot(), 10 * size_of(kit)) == Room(9, 8, 101, 9 * size_of(kit))


def test_an_adapter_that_stands_on_a_folded_one_says_nothing(filled, kit) -> None:
    kit.adapter = kit.adapter._replace(r=1, metrics={"directions_left": 101, "folded_into": "f" * 64})
    kit.add_task(filled, "c", weight=3.0)
    assert room_left(filled.snapshot()) == Room(12, 8, 101)


def test_an_adapter_of_biases_takes_no_direction(filled, kit) -> None:
    kit.adapter = kit.adapter._replace(r=1, metrics={"capacity_left": 1.0, "capacity_by_module": {}})
    kit.add_task(filled, "c", weight=3.0)
    assert room_left(filled.snapshot()) == Room(12, 8, 101)


def test_an_older_bank_does_not_say(bank, kit) -> None:
    assert room_left(bank.snapshot()) is None
    kit.add_task(bank, "a")
    assert room_left(bank.snapshot()) is None
