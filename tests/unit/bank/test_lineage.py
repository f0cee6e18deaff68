"""What adapters were trained on top of: stored in few rows, read as it was given."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.rows import sealed
from lorabank.core.errors import DamagedError, IncompatibleError
from lorabank.core.records import Lineage


def add(bank: Bank, kit: Any, name: str, weight: float, context: tuple[str, ...]) -> str:
    """The digest of a new task's adapter."""
    kit.add_task(bank, name, weight=weight, context=context)
    return str(bank.snapshot().adapter_of(name).digest)


def rows(bank: Bank) -> list[dict[str, Any]]:
    with bank.catalog.read() as view:
        return [dict(row) for row in view.rows("adapter_context")]


def test_a_sequence_of_tasks_takes_a_row_each_and_another_for_each_one_that_goes(bank, kit) -> None:
    digests: list[str] = []
    for number in range(12):
        digests.append(add(bank, kit, f"t{number}", number, tuple(digests)))
    assert len(rows(bank)) == 11
    for gone in (8, 3):
        bank.remove(f"t{gone}")
        del digests[gone]
    digests.append(add(bank, kit, "on-the-rest", 20, tuple(digests)))
    assert len(rows(bank)) == 11 + 3
    digests.append(add(bank, kit, "and-on-that", 21, tuple(digests)))
    assert len(rows(bank)) == 11 + 3 + 1
    assert bank.snapshot().adapter_of("and-on-that").context == tuple(digests[:-1])
    assert bank.verify(full=True) == []


@pytest.mark.parametrize("seed", range(6))
def test_whatever_was_given_is_read_and_kept(bank, kit, seed) -> None:
    """Any adapters in any order, equal ones of several tasks among them, beside tasks that come and go."""
    chance = random.Random(seed)
    given: dict[int, tuple[str, ...]] = {}
    digest_of: dict[int, str] = {}
    for number in range(1, 15):
        usable = [digest_of[task.position] for task in bank.snapshot().tasks]
        part = chance.choice([usable, usable, usable[1:], usable[:-1], chance.sample(usable, len(usable) // 2), []])
        given[number] = tuple(part)
        weight = chance.choice([number, number, number, 1])  # a weight is an adapter: 1 is that of the first task
        digest_of[number] = add(bank, kit, f"t{number}", weight, given[number])
        if chance.random() < 0.3:
            bank.remove(chance.choice(bank.snapshot().tasks).name)
    snapshot = bank.snapshot()
    assert {number: adapter.context for number, adapter in snapshot.by_position.items()} == given
    used = {task.position for task in snapshot.tasks}
    needed = {digest for number in used for digest in (*given[number], digest_of[number])}
    bank.gc(dry_run=False, grace_hours=-1)
    assert {folder.name for folder in (bank.path / "adapters").iterdir()} == needed
    assert bank.verify(full=True) == []


def test_an_adapter_whose_files_are_gone_cannot_be_trained_on_top_of(bank, kit) -> None:
    first = add(bank, kit, "first", 1, ())
    second = add(bank, kit, "second", 2, (first,))
    third = add(bank, kit, "third", 3, (first, second))
    for name in ("third", "second", "first"):
        bank.remove(name)
    for digest in (first, third):  # though the newest of them lies there still
        (bank.path / "adapters" / digest).rename(bank.path / "trash" / digest)
        with pytest.raises(
            IncompatibleError, match=f"{digest[:12]}, which was active in training, is not in the bank"
        ):
            add(bank, kit, "fourth", 4, (first, second, third))
        (bank.path / "trash" / digest).rename(bank.path / "adapters" / digest)
    add(bank, kit, "fourth", 4, (first, second, third))
    with pytest.raises(IncompatibleError, match=f"adapter {'0' * 12}, which"):
        add(bank, kit, "fifth", 5, (first, "0" * 64))


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([(1, "lineage"), (2, "lineage")], "task 4 was trained on top of are not a list"),
        ([(1, None), (2, "lineage")], "task 4 was trained on top of are not a list"),
        ([(1, None), (1, "without")], "task 4 was trained on top of are not a list"),
        ([(1, "lineage"), (2, "without")], "task 4 was trained on top of are not a list"),
        ([(4, "lineage")], "task 4 was not trained on top of task 4"),
    ],
)
def test_rows_that_stand_for_no_list_are_refused(bank, kit, added, message) -> None:
    for number in range(1, 5):
        add(bank, kit, f"t{number}", number, ())
    with bank.catalog.write() as transaction:
        for ordinal, (member, part) in enumerate(added):
            row = {"adapter": 4, "ordinal": ordinal, "member": member, "part": part}
            transaction.insert("adapter_context", sealed("adapter_context", row))
    with pytest.raises(DamagedError, match=message):
        bank.snapshot()
    assert [message in finding.message for finding in bank.verify(full=False)] == [True]


def chain(length: int) -> list[Lineage[int]]:
    """What each of some adapters needs, the last one all of them."""
    found = [Lineage((0,))]
    for number in range(1, length):
        found.append(Lineage((number,), found[-1]))
    return found


def test_a_lineage_is_a_sequence() -> None:
    lineage = Lineage((5, 6), chain(4)[-1], without=(1, 2))
    assert (len(lineage), list(lineage), lineage[-1], lineage[1:3]) == (4, [0, 3, 5, 6], 6, (3, 5))
    assert lineage == (0, 3, 5, 6) == Lineage((0, 3, 5, 6)) != (0, 3, 5)
    assert (lineage == (0, 3, 5, 6), lineage == [0, 3, 5, 6]) == (True, False)
    assert {lineage, (0, 3, 5, 6)} == {(0, 3, 5, 6)}
    assert (repr(lineage), 3 in lineage, 1 in lineage) == ("(0, 3, 5, 6)", True, False)


def test_a_long_lineage_is_copied_and_let_go() -> None:
    """Ten times as long as calls may be inside each other."""
    last = chain(10_000)[-1]
    assert pickle.loads(pickle.dumps(last)) == copy.deepcopy(last) == tuple(range(10_000))


@pytest.mark.parametrize("seed", range(20))
def test_a_union_is_what_going_through_all_gives(seed) -> None:
    chance = random.Random(seed)
    made: list[Lineage[int]] = [Lineage(())]
    for number in range(30):
        before = chance.choice(made)
        gone = chance.sample(list(before), chance.choice([0, 0, 0, min(2, len(before))]))
        made.append(Lineage((number,), before, gone))
    chosen = chance.sample(made, 12)
    expected = dict.fromkeys(one for lineage in chosen for one in lineage)
    assert list(Lineage.union(chosen)) == list(expected)
