"""Reserving names, ending, interrupting and killing operations, and what a failure leaves: nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.locks import process_start
from lorabank.core.errors import (
    BusyError,
    ConfigError,
    DataError,
    ExistsError,
    NotFoundError,
    StorageError,
)
from lorabank.core.records import TaskRecord


def die_holding(bank: Bank, kind: str, name: str, *, checkpoint: bool = False) -> None:
    """Reserve a name in a child process that is then killed."""
    child = os.fork()
    if child == 0:
        operation = bank.reserve(kind, name, {"epochs": 3, "texts": ("a", "b")})
        if checkpoint:
            (operation.work / "checkpoint-50").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "a/b",
        "../x",
        "A",
        "-a",
        "a-",
        "a..b",
        "é",
        "a\n",
        "\x1b[31m",
        "x" * 65,
        "con",
        "nul.txt",
        "as-trained",
    ],
)
def test_names_that_are_refused(bank, kit, name):
    before = kit.tree(bank.path)
    with pytest.raises(ConfigError) as caught:
        bank.reserve("add-task", name, {})
    assert caught.value.message.isprintable()
    assert kit.tree(bank.path) == before


@pytest.mark.parametrize("name", ["a", "0", "spam-2", "x" * 64, "v1.0_final"])
def test_names_that_are_accepted(bank, name):
    with bank.reserve("add-task", name, {}) as operation:
        assert operation.name == name


def test_tasks_and_compositions_share_their_names(bank, kit):
    kit.add_task(bank, "spam")
    kit.compose(bank, "mix", ("spam",))
    for kind in ("add-task", "compose"):
        for name in ("spam", "mix"):
            with pytest.raises(ExistsError, match=f"{name!r} already"):
                bank.reserve(kind, name, {})
    assert bank.operations() == []


def test_one_writer_at_a_time(bank, kit):
    kit.add_task(bank, "old")
    with bank.reserve("add-task", "spam", {"seed": 1}) as operation:
        (listed,) = bank.operations()
        assert (listed.id, listed.kind, listed.name) == (operation.id, "add-task", "spam")
        assert (listed.pid, listed.alive, listed.config) == (os.getpid(), True, {"seed": 1})
        for attempt in (
            lambda: bank.reserve("compose", "mix", {}),
            lambda: bank.reserve("add-task", "spam", {}),
            lambda: bank.remove("old"),
            lambda: bank.gc(dry_run=False),
            lambda: bank.resume("add-task", "spam"),
            lambda: bank.discard("spam"),
        ):
            with pytest.raises(BusyError, match=f"process {os.getpid()} .* add-task 'spam'"):
                attempt()
        bank.add_evaluations([kit.evaluation()])
        assert bank.snapshot().task("old").state == "ready"
    assert bank.operations() == []


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_an_operation_without_a_commit_leaves_nothing(bank, kit, error):
    before = kit.tree(bank.path)
    try:
        with bank.reserve("add-task", "spam", {}) as operation:
            (operation.work / "notes").write_text("half")
            operation.stage_blob(b"half")
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert set(kit.tree(bank.path)) == set(before)
    assert bank.operations() == []
    assert bank.snapshot().tasks == ()
    kit.add_task(bank, "spam")


def test_an_interrupted_training_with_a_checkpoint_can_be_resumed(bank, kit):
    operation = bank.reserve("add-task", "spam", {"texts": ("a",)})
    (operation.work / "checkpoint-50").mkdir()
    (operation.work / "checkpoint-50" / "state").write_text("half")
    operation.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    (left,) = bank.operations()
    assert not left.alive
    with pytest.raises(ExistsError, match="interrupted add-task 'spam'") as caught:
        bank.reserve("add-task", "spam", {})
    assert caught.value.commands == (("add-task", "spam", "--resume"),)
    assert "--restart" in caught.value.hint
    kit.add_task(bank, "products")  # another name is free
    with bank.resume("add-task", "spam") as resumed:
        assert resumed.id == operation.id
        assert resumed.config == {"texts": ["a"]}
        assert (resumed.work / "checkpoint-50" / "state").read_text(encoding="utf-8") == "half"
        assert bank.operations()[0].alive
        kit.commit_task(resumed, "spam", weight=9.0)
    assert [task.name for task in bank.snapshot().tasks] == ["products", "spam"]
    assert not operation.work.exists()


def test_a_killed_training_can_be_resumed_or_discarded(bank, kit):
    die_holding(bank, "add-task", "spam", checkpoint=True)
    assert [operation.alive for operation in bank.operations()] == [False]
    with pytest.raises(ExistsError):
        bank.reserve("add-task", "spam", {})
    with pytest.raises(NotFoundError):
        bank.resume("add-task", "products")
    with bank.resume("add-task", "spam") as operation:
        assert operation.config == {"epochs": 3, "texts": ["a", "b"]}
        operation.work.joinpath("checkpoint-50").rmdir()
    assert bank.operations() == []

    die_holding(bank, "add-task", "spam", checkpoint=True)
    bank.discard("spam")
    assert list((bank.path / "work").iterdir()) == []
    with pytest.raises(NotFoundError):
        bank.discard("spam")
    kit.add_task(bank, "spam")


@pytest.mark.parametrize("kind", ["add-task", "compose"])
def test_a_dead_reservation_without_checkpoints_lapses(bank, kit, kind):
    die_holding(bank, kind, "spam")
    kit.add_task(bank, "spam")
    assert bank.operations() == []
    bank.gc(dry_run=False)
    assert list((bank.path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("column", "value", "alive"),
    [
        ("boot_id", "another boot", False),
        ("process_start", 1, False),  # the process id came round again
        ("host", "another-host", True),  # cannot be asked from here
        ("pid", 0, False),
    ],
)
def test_what_counts_as_alive(bank, column, value, alive):
    operation = bank.reserve("compose", "mix", {})
    with sqlite3.connect(bank.path / "bank.db") as connection:
        connection.execute(f"UPDATE operations SET {column} = ?", (value,))
    connection.close()
    assert [found.alive for found in bank.operations()] == [alive]
    operation.__exit__(None, None, None)


def test_process_start_knows_living_dead_and_zombie_processes():
    assert process_start(os.getpid()) > 0
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert process_start(child) == 0  # a zombie
    os.waitpid(child, 0)
    assert process_start(child) == 0


def test_process_start_is_what_the_kernel_counts_whatever_the_clock_says(monkeypatch):
    # Older versions stored field 22 of /proc/PID/stat: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert process_start(os.getpid()) == ticks
    boot = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot + 3600.0)  # the clock was set
    assert process_start(os.getpid()) == ticks
    moments = iter([boot, boot, boot + 5.0, *[boot + 5.0] * 3])  # it is set in the middle of the question
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: next(moments))
    assert process_start(os.getpid()) == ticks


def test_values_that_are_not_finite_do_not_enter(bank, kit):
    with bank.reserve("add-task", "spam", {}) as operation:
        digest = operation.stage_adapter(kit.files(1.0))
        task = TaskRecord("spam", 0, "SEQ_CLS", ("no",), "training")
        for changes in ({"wall_seconds": float("nan")}, {"metrics": {"loss": float("inf")}}):
            with pytest.raises(DataError):
                operation.commit_task(task, kit.adapter._replace(digest=digest, **changes), [])
    with pytest.raises(DataError, match="value"):
        bank.add_evaluations([kit.evaluation(value=float("nan"))])
    assert bank.snapshot().tasks == ()
    assert bank.all_evaluations() == []


def test_a_full_disk_is_refused_before_anything_is_written(bank, kit, monkeypatch):
    import lorabank.bank.objects.store as store

    before = kit.tree(bank.path)
    usage = store.shutil.disk_usage(bank.path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=1024**2))
    with pytest.raises(StorageError, match="MiB free") as caught:
        bank.reserve("add-task", "spam", {})
    assert caught.value.exit_code == 10
    assert kit.tree(bank.path) == before


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_an_io_error_while_storing_changes_nothing(bank, kit, monkeypatch, call):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with bank.reserve("add-task", "spam", {}) as operation, monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match="No space left"):
            kit.commit_task(operation, "spam")
    assert bank.snapshot().tasks == ()
    assert bank.operations() == []
    kit.add_task(bank, "spam")
    assert bank.verify(full=True) == []


def test_a_reservation_that_was_dropped_cannot_commit(bank, kit):
    with bank.reserve("add-task", "spam", {}) as operation:
        with sqlite3.connect(bank.path / "bank.db") as connection:
            connection.execute("DELETE FROM operations")
        connection.close()
        with pytest.raises(NotFoundError, match="is gone"):
            kit.commit_task(operation, "spam")
    assert bank.snapshot().tasks == ()


def in_processes(number: int, action: Callable[[int], int]) -> list[int]:
    """Run an action in several processes at once; its results (exit codes; 99: it raised) in order."""
    children = []
    for label in range(number):
        child = os.fork()
        if child == 0:
            result = 99
            try:
                result = action(label)
            finally:
                os._exit(result)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_no_writer_overwrites_another(bank, kit):
    def write(label: int) -> int:
        for number in range(10):
            bank.add_evaluations([kit.evaluation(f"{label}-{number}"), kit.evaluation("shared")])
            if bank.verify(full=True):
                return 1
        return 0

    assert in_processes(6, write) == [0] * 6
    assert {record.key for record in bank.all_evaluations()} == {
        "shared",
        *(f"{label}-{number}" for label in range(6) for number in range(10)),
    }


def test_one_of_many_processes_gets_a_name(bank):
    everyone_tried = multiprocessing.get_context("fork").Barrier(6)

    def race(_: int) -> int:
        lost = 0
        try:
            bank.reserve("add-task", "spam", {})
        except BusyError:
            lost = 1
        everyone_tried.wait(60)
        return lost

    assert sorted(in_processes(6, race)) == [0, 1, 1, 1, 1, 1]
