"""list of a bank with many tasks, of removed ones, by tag, in any order."""

from __future__ import annotations

from typing import Any

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.records import CompositionRecord
from tests.cli.conftest import _add_task

MANY = 30
LONGEST = 200
"""Characters of a line that people read."""


@pytest.fixture
def crowded(bank: Bank) -> Bank:
    """Thirty-two tasks, all of them members of one composition."""
    for number in range(MANY):
        _add_task(bank, f"queue-{number:02}-customer-support", float(number + 10))
    snapshot = bank.snapshot()
    members = tuple(task.name for task in snapshot.tasks)
    with bank.reserve("compose", "all-of-them", {}) as operation:
        digests = tuple(snapshot.adapter_of(name).digest for name in members)
        operation.commit_composition(CompositionRecord("all-of-them", "manual", members, digests, {}, {}))
    return bank


def names(document: dict[str, Any]) -> list[str]:
    return [task["name"] for task in document["tasks"]]


def test_lines_stay_readable_with_many_members(run: Any, crowded: Bank) -> None:
    lines = run("list").out.splitlines()
    (line,) = (line for line in lines if line.startswith("all-of-them"))
    start = (
        "32: sentiment, spam, queue-00-customer-support, queue-01-customer-support, queue-02-customer-support, \u2026"
    )
    assert line.split("  ", 1)[1].split("manual", 1)[1].strip().startswith(start)
    assert max(map(len, lines)) < LONGEST
    whole = run("list", "--no-truncate").out
    assert all(f"queue-{number:02}-customer-support, " in whole for number in range(MANY - 1))
    members = run("list", "--json").document["compositions"][-1]["members"]
    assert len(members) == MANY + 2


def test_order_tag_and_limit(run: Any, bank: Bank) -> None:
    _add_task(bank, "archive", 3.0)
    bank.change_tags("archive", add=["late"])
    bank.change_tags("both", add=["late"])
    assert names(run("list", "--json").document) == ["sentiment", "spam", "archive"]
    assert names(run("list", "--sort", "name", "--json").document) == ["archive", "sentiment", "spam"]
    assert names(run("list", "--sort", "score", "--json").document) == ["spam", "sentiment", "archive"]
    assert names(run("list", "--sort", "date", "--json").document) == ["archive", "spam", "sentiment"]
    assert sorted(names(run("list", "--sort", "size", "--json").document)) == ["archive", "sentiment", "spam"]
    tagged = run("list", "--tag", "late", "--json").document
    assert (names(tagged), [c["name"] for c in tagged["compositions"]]) == (["archive"], ["both"])
    assert run("list", "--tag", "late").out.splitlines()[2].split()[-2:] == ["tags", "state"]
    limited = run("list", "--limit", "2")
    assert "(1 more; without --limit all are shown)" in limited.out.splitlines()
    assert "archive" not in limited.out
    nothing = run("list", "--tag", "nowhere")
    assert (nothing.code, "no task has this tag" in nothing.out) == (0, True)


def test_what_was_removed_is_shown_with_all(run: Any, bank: Bank) -> None:
    bank.remove("spam", cascade=True)
    moment = bank.snapshot().removed_tasks[0].removed_at
    assert moment is not None
    assert "spam" not in run("list").out
    lines = run("list", "--all").out.splitlines()
    assert next(line for line in lines if line.startswith("2  spam ")).endswith(f"removed {moment[:10]}")
    assert next(line for line in lines if line.startswith("both ")).endswith(f"removed {moment[:10]}")
    document = run("list", "--all", "--json").document
    assert [(task["name"], task["state"], task["removed_at"]) for task in document["tasks"]] == [
        ("sentiment", "ready", None),
        ("spam", "removed", moment),
    ]
    assert [made["name"] for made in document["removed_compositions"]] == ["both"]
    assert run("list", "--json").document["removed_compositions"] == []


def test_a_bank_whose_tasks_are_all_removed_says_what_to_do_next(run: Any, bank: Bank) -> None:
    for name in ("both", "spam", "sentiment"):
        bank.remove(name)
    assert "no tasks yet" in run("list").out
    assert "spam" in run("list", "--all").out
