"""The history of a bank: every change is a line of it, and can be taken back while its files are there."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lorabank import __version__, api
from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import DamagedError, ExistsError, NotFoundError
from tests.unit.bank.prepared import EVENTS, HISTORIES, rewrite
from tests.unit.bank.test_kill import kill_everywhere


@pytest.fixture
def filled(bank, kit) -> Bank:
    first = kit.add_task(bank, "a")
    kit.add_task(bank, "b", weight=2.0, context=(first.adapter,))
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    kit.compose(bank, "only-a", ("a",))
    return bank


CHANGES: dict[str, Callable[[Bank, object], object]] = {
    "add-task": lambda bank, kit: kit.add_task(bank, "c", weight=3.0),
    "compose": lambda bank, kit: kit.compose(bank, "mix", ("b", "a"), content=b"selector"),
    "compose --replace": lambda bank, kit: kit.compose(bank, "ab", ("b",), content=b"other", replace=True),
    "replace": lambda bank, kit: kit.replace_task(bank, "a", weight=7.0),
    "remove a composition": lambda bank, kit: bank.remove("ab"),
    "remove --cascade": lambda bank, kit: bank.remove("a", cascade=True),
    "remove a task": lambda bank, kit: (bank.remove("ab"), bank.remove("b")),
}
"""Each on the bank of ``filled``."""


def state(bank: Bank) -> Snapshot:
    """What can be used, as one reads it; what was removed may differ by when."""
    return bank.snapshot()._replace(removed_tasks=(), removed_compositions=(), by_position={})


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_taken_back_as_if_it_had_not_been(filled, kit, change):
    steps = [state(filled)]
    known = len(filled.history())
    CHANGES[change](filled, kit)
    made = len(filled.history()) - known
    assert state(filled) != steps[0]
    for _ in range(made):
        planned = filled.undo(dry_run=True)
        assert filled.undo() == planned
    assert state(filled) == steps[0]
    assert filled.verify(full=True) == []
    kinds = [event.kind for event in filled.history()][known:]
    assert kinds[made:] == ["undo"] * made
    assert kinds[0] == change.split()[0]
    CHANGES[change](filled, kit)  # and it can be made again
    assert filled.verify(full=True) == []


def test_undo_goes_back_to_the_beginning_and_stops(filled, kit):
    """One by one, over changes of all kinds, and over what came after an undo."""
    states = [state(filled)]
    for change in ("add-task", "compose", "remove --cascade"):
        CHANGES[change](filled, kit)
        states.append(state(filled))
    filled.undo()
    kit.compose(filled, "late", ("b",))
    assert filled.undo().gone == ("late",)
    for expected in reversed(states[:-2]):
        filled.undo()
        assert state(filled) == expected
    for gone in ("only-a", "ab", "b", "a"):
        assert filled.undo().gone == (gone,)
    with pytest.raises(NotFoundError, match="nothing to undo"):
        filled.undo()
    assert filled.snapshot().tasks == ()
    assert len(filled.snapshot().removed_tasks) == 3


def test_every_change_is_a_line_with_what_undo_would_take_back(filled):
    filled.remove("ab")
    filled.undo()
    entries = api.history(filled.path)
    assert [(e.number, e.kind, e.name) for e in entries] == [
        (7, "undo", "ab"),
        (6, "remove", "ab"),
        (5, "compose", "only-a"),
        (4, "compose", "ab"),
        (3, "add-task", "b"),
        (2, "add-task", "a"),
        (1, "init", ""),
    ]
    assert [e.number for e in entries if e.next] == [5]
    assert (entries[0].undoes, entries[1].undone_by) == (6, 7)
    assert (entries[0].added, entries[1].removed, entries[2].added) == (("ab",), ("ab",), ("only-a",))
    assert {e.version for e in entries} == {__version__}
    assert [e.at for e in entries] == sorted((e.at for e in entries), reverse=True)


def test_a_failed_change_is_no_line(filled, kit):
    before = filled.history()
    with pytest.raises(ExistsError):
        filled.remove("a")
    with pytest.raises(RuntimeError), filled.reserve("add-task", "c", {}):
        raise RuntimeError
    assert filled.history() == before


def test_what_gc_deletes_is_told_and_cannot_be_undone(filled, kit):
    kit.compose(filled, "last", ("b",))
    filled.remove("ab")
    filled.remove("only-a")
    planned = filled.gc(dry_run=True, grace_hours=-1)
    assert [(event.kind, event.name) for event in planned.lost] == [
        ("remove", "ab"), ("compose", "last"), ("compose", "only-a"), ("compose", "ab"), ("add-task", "b"),
        ("add-task", "a"),
    ]  # fmt: skip
    assert filled.gc(dry_run=True, grace_hours=1).lost == ()
    assert filled.gc(dry_run=False, grace_hours=-1).lost == planned.lost
    assert filled.gc(dry_run=True, grace_hours=-1).lost == ()
    assert filled.undo().back == ("only-a",)  # it has no file of its own
    before = (state(filled), filled.history())
    for dry_run in (True, False):
        with pytest.raises(
            NotFoundError, match=r"remove 'ab' of .*since files are gone: blobs/../[0-9a-f]{64}"
        ) as caught:
            filled.undo(dry_run=dry_run)
        assert caught.value.exit_code == 3
        assert caught.value.unchanged == "the bank was not changed"
    assert (state(filled), filled.history()) == before


def test_a_damaged_file_does_not_come_back(filled, kit):
    filled.remove("ab")
    filled.remove("b")
    adapter = filled.path / "adapters" / filled.snapshot().removed_tasks[0].adapter / "adapter_model.safetensors"
    content = adapter.read_bytes()
    kit.overwrite(adapter, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"remove 'b' .*cannot be undone: adapters/"):
        filled.undo()
    assert [task.name for task in filled.snapshot().tasks] == ["a"]


def test_a_name_that_an_interrupted_training_has_does_not_come_back(filled):
    filled.remove("ab")
    with suppress(KeyboardInterrupt), filled.reserve("add-task", "ab", {}) as operation:
        (operation.work / "checkpoint-1").mkdir()
        raise KeyboardInterrupt
    with pytest.raises(ExistsError, match="an interrupted add-task has the name 'ab'"):
        filled.undo()


def test_killed_at_every_step_of_undoing(filled):
    filled.remove("a", cascade=True)
    kills, wrong = kill_everywhere(filled.path, lambda bank: bank.undo() if len(bank.snapshot().tasks) < 2 else None)
    assert wrong == []
    assert kills >= 5  # BEGIN, tasks, compositions, the event, COMMIT


def test_a_repair_is_a_line_and_is_passed_over(filled, kit):
    adapter = filled.path / "adapters" / filled.snapshot().adapter_of("b").digest / "adapter_model.safetensors"
    copy = Path(shutil.copytree(filled.path, filled.path.with_name("copy")))
    kit.overwrite(adapter, b"broken")
    assert api.repair(filled.path).set_aside == ("b",)
    assert api.repair(filled.path, source=copy).brought_back == ("b",)
    assert [(event.kind, event.detail) for event in filled.history()][-2:] == [
        ("repair", {"tasks_removed": [2]}),
        ("repair", {"tasks_added": [2]}),
    ]
    assert filled.undo().gone == ("only-a",)


@pytest.mark.parametrize("changes", EVENTS)
def test_an_event_that_is_none_is_refused(filled, changes):
    rewrite(filled, "events", **changes)
    for look in (filled.history, filled.undo, lambda: api.history(filled.path)):
        with pytest.raises(DamagedError, match="events") as caught:
            look()
        assert "\n" not in caught.value.message
    assert filled.verify(full=False) != []


@pytest.mark.parametrize("detail", HISTORIES)
def test_a_history_that_does_not_fit_the_bank_changes_nothing(bank, kit, detail):
    """The digest of a row tells damage, not intent."""
    kit.add_task(bank, "a")
    kit.add_task(bank, "b")
    kit.compose(bank, "ab", ("a", "b"))
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM events WHERE id > 1")
    rewrite(bank, "events", kind="remove", detail=json.dumps(detail))
    before = bank.snapshot()
    with pytest.raises(DamagedError, match=r"change 1 .*does not fit what the bank holds"):
        bank.undo()
    assert bank.snapshot() == before
