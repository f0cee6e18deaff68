"""Reservations of another host: alive for as long as they were seen lately, by whatever clock, and never for ever."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.catalog import heartbeat
from lorabank.bank.locks import LEASE
from lorabank.bank.objects.layout import Layout
from lorabank.bank.upkeep.backup import back_up_database
from lorabank.core.errors import BusyError, ExistsError, NotFoundError

Change = Callable[[Bank], Any]


def update(bank: Bank, **columns: Any) -> None:
    """Change the reservation behind its holder's back."""
    names = ", ".join(f"{name} = ?" for name in columns)
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        assert connection.execute(f"UPDATE operations SET {names}", tuple(columns.values())).rowcount == 1


def seen_at(bank: Bank) -> str:
    (operation,) = bank.operations()
    return operation.seen_at


def on_another_host(bank: Bank, *, ago: Any, kind: str = "add-task", checkpoint: bool = False) -> None:
    """A reservation that another machine made, seen some time ago by its clock, or at a date as given."""
    operation = bank.reserve(kind, "theirs", {})
    if checkpoint:
        (operation.work / "checkpoint-3").mkdir()
    seen = (datetime.now(UTC) - ago).isoformat() if isinstance(ago, timedelta) else ago
    update(bank, host="another-host", boot_id="another", pid=1, process_start=5, seen_at=seen)


@pytest.fixture
def filled(bank: Bank, kit: Any) -> Bank:
    kit.add_task(bank, "a")
    return bank


COMMANDS: dict[str, Change] = {
    "reserve": lambda bank: bank.reserve("compose", "mine", {}),
    "remove": lambda bank: bank.remove("a"),
    "gc": lambda bank: bank.gc(dry_run=False),
    "repair": lambda bank: api.repair(bank.path),
    "discard": lambda bank: bank.discard("theirs"),
    "resume": lambda bank: bank.resume("add-task", "theirs"),
    "restore": lambda bank: api.restore(bank.path, back_up_database(Layout(bank.path)).path),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("skew", [LEASE / 2, -LEASE / 2])
def test_nothing_is_changed_beside_what_was_seen_lately_on_another_host(filled, name, skew):
    on_another_host(filled, ago=skew, checkpoint=True)
    with pytest.raises(BusyError, match="process 1 on another-host is doing add-task 'theirs'") as caught:
        COMMANDS[name](filled)
    assert "it counts as dead" in str(caught.value.hint)
    assert caught.value.commands == (("doctor", "--repair"),)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("ago", [2 * LEASE, -2 * LEASE], ids=["dead", "a clock that was ahead"])
def test_what_was_not_seen_lately_blocks_nothing(filled, name, ago):
    on_another_host(filled, ago=ago, checkpoint=True)
    COMMANDS[name](filled)


@pytest.mark.parametrize(
    "seen",
    ["9998-01-01T00:00:00+00:00", "", "soon", "2026-01-01", "9999-12-31T23:59:59.999999-23:59", b"\xff", 5],
    ids=str,
)
def test_a_prepared_date_is_not_a_lease(filled, seen):
    on_another_host(filled, ago=seen)
    assert [operation.alive for operation in filled.operations()] == [False]
    filled.remove("a")


def test_a_reservation_of_an_older_version_was_seen_when_it_was_made(bank):
    bank.reserve("compose", "mix", {})
    update(bank, host="another-host", seen_at=None)
    assert [operation.alive for operation in bank.operations()] == [True]
    update(bank, started_at="2020-01-01T00:00:00+00:00")
    assert [operation.alive for operation in bank.operations()] == [False]


def test_a_dead_one_without_checkpoints_is_dropped_by_repair(bank):
    on_another_host(bank, ago=2 * LEASE)
    assert "the reservation of add-task theirs" in api.repair(bank.path).swept
    assert bank.operations() == []


def test_the_lease_is_for_other_hosts_alone(bank):
    """Of a process on this one it is known whether it lives."""
    with bank.reserve("compose", "mix", {}):
        for wrong in ("2020-01-01T00:00:00+00:00", "", None):
            update(bank, seen_at=wrong)
            assert [operation.alive for operation in bank.operations()] == [True]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    monkeypatch.setattr(heartbeat, "_PATIENCE", 0.02)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; who waits in vain fails."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never happened")


def test_a_change_under_way_is_seen_again_and_again(bank, quick):
    with bank.reserve("compose", "mix", {}):
        for _ in range(2):
            before = seen_at(bank)
            until(lambda before=before: seen_at(bank) > before)
        beating = [thread for thread in threading.enumerate() if thread.name == "lorabank heartbeat"]
        assert len(beating) == 1
    assert not beating[0].is_alive()


def test_a_resumed_change_is_seen_at_once(bank):
    operation = bank.reserve("add-task", "spam", {})
    (operation.work / "checkpoint-1").mkdir()
    update(bank, pid=0, seen_at="2020-01-01T00:00:00+00:00")
    with bank.resume("add-task", "spam"):
        assert datetime.now(UTC) - datetime.fromisoformat(seen_at(bank)) < LEASE


@pytest.mark.parametrize("trouble", ["locked", "gone", "no threads"])
def test_a_beat_that_fails_fails_nothing(bank, kit, quick, trouble, monkeypatch):
    if trouble == "no threads":
        monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
    with bank.reserve("add-task", "spam", {}) as operation:
        if trouble == "locked":
            with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(0.2)
        elif trouble == "gone":
            os.rename(bank.path / "bank.db", bank.path / "elsewhere")
            time.sleep(0.1)
            os.rename(bank.path / "elsewhere", bank.path / "bank.db")
        kit.commit_task(operation, "spam", weight=1.0)
    assert [task.name for task in bank.snapshot().tasks] == ["spam"]


def test_a_process_forked_beside_the_beat_can_read_the_bank(bank, quick):
    with bank.reserve("compose", "mix", {}):
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(0 if len(bank.operations()) == 1 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_another_process_took_over_is_its_own(bank, kit, quick):
    """A machine that slept longer than the lease wakes up: it commits nothing, drops nothing, says no sign of life."""
    with bank.reserve("add-task", "spam", {}) as operation:
        (operation.work / "checkpoint-1").mkdir()
        update(bank, host="another-host", pid=1, seen_at="2020-01-01T00:00:00+00:00")
        time.sleep(0.1)
        assert seen_at(bank) == "2020-01-01T00:00:00+00:00"
        with pytest.raises(NotFoundError, match="another process dropped it or took it over"):
            kit.commit_task(operation, "spam", weight=1.0)
    assert [(found.host, found.pid) for found in bank.operations()] == [("another-host", 1)]
    assert (operation.work / "checkpoint-1").is_dir()
    with pytest.raises(ExistsError, match="has checkpoints"):
        bank.reserve("add-task", "spam", {})


def test_the_file_of_the_database_is_not_left_open(bank, quick):
    with bank.reserve("compose", "mix", {}):
        until(lambda: seen_at(bank) != bank.operations()[0].started_at)
    opened = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_link(name)]
    assert not [path for path in opened if Path(path).name.startswith("bank.db")]


def _is_link(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")
