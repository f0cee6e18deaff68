"""A killed process leaves a bank that opens, and everything that was acknowledged.

Two ways: SIGKILL before every single file operation and SQL statement of a command, and at random moments.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.operations import Operation
from lorabank.core.records import DERIVED

CALLS = ("write", "fchmod", "fsync", "rename", "mkdir", "rmdir", "unlink", "utime")
WRITES = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "DELETE", "COMMIT")


def run_killed(action: Callable[[], object], step: int) -> bool:
    """Run in a child that is killed before its ``step``-th operation; whether it got that far."""
    child = os.fork()
    if child == 0:
        try:
            left = [step]
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name), left))
            sqlite3.connect = traced(sqlite3.connect, left)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child failed at step {step}"
    return status != 0


def counted(call: Callable[..., object], left: list[int]) -> Callable[..., object]:
    def counting(*args: object, **options: object) -> object:
        count(left)
        return call(*args, **options)

    return counting


def traced(connect: Callable[..., sqlite3.Connection], left: list[int]) -> Callable[..., sqlite3.Connection]:
    def tracing(*args: object, **options: object) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(lambda statement: count(left) if statement.startswith(WRITES) else None)
        return connection

    return tracing


def count(left: list[int]) -> None:
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def names(bank: Bank) -> set[str]:
    snapshot = bank.snapshot()
    return {task.name for task in snapshot.tasks} | {composition.name for composition in snapshot.compositions}


def kill_everywhere(
    start: Path, action: Callable[[Bank], object], names: Callable[[Bank], object] = names
) -> tuple[int, list[str]]:
    """Kill an action before each of its operations, from the same start; returns kills and what was wrong after.

    Args:
        start: A bank that is copied.
        action: What is done.
        names: What of a bank is either as before or as after.
    """
    bank = Bank.open(shutil.copytree(start, start.parent / "whole"))
    before = names(bank)
    action(bank)
    after = names(bank)
    wrong: list[str] = []
    step = 0
    while True:
        step += 1
        path = shutil.copytree(start, start.parent / f"killed-{step}")
        if wrong or not run_killed(lambda path=path: action(Bank.open(path)), step):
            return step - 1, wrong
        bank = Bank.open(path)
        found = names(bank)
        if found not in (before, after):
            wrong.append(f"step {step}: {found} is neither {before} nor {after}")
        wrong += [f"step {step}: {finding.message}" for finding in bank.verify(full=True)]
        if found != after:
            action(bank)  # nothing that the dead process left is in the way
        bank.gc(dry_run=False, grace_hours=-1)
        wrong += [f"step {step}, later: {finding.message}" for finding in bank.verify(full=True)]
        wrong += [
            f"step {step}: {entry} was left"
            for name in ("staging", "work", "trash")
            for entry in (path / name).iterdir()
        ]
        if names(bank) != after:
            wrong.append(f"step {step}: a second attempt gave {names(bank)}")
        shutil.rmtree(path)


@pytest.fixture
def start(bank, kit) -> Path:
    kit.add_task(bank, "a", weight=1.0)
    kit.add_task(bank, "b", weight=2.0)
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    kit.compose(bank, "doomed", ("a",), content=kit.safetensors(0.25))
    bank.remove("doomed")
    return bank.path


@pytest.mark.slow
def test_killed_at_every_step_of_adding_a_task(start, kit):
    kills, wrong = kill_everywhere(start, lambda bank: kit.add_task(bank, "c", weight=3.0))
    assert wrong == []
    assert kills > 30


def test_killed_at_every_step_of_composing(start, kit):
    kills, wrong = kill_everywhere(start, lambda bank: kit.compose(bank, "mix", ("b",), content=b"selector"))
    assert wrong == []
    assert kills > 10


def test_killed_at_every_step_of_keeping_what_was_derived(start, kit):
    def keep(bank: Bank) -> None:
        bank.keep_derived(bank.snapshot().composition("ab"), f"{DERIVED}2", kit.safetensors(0.75))

    def objects(bank: Bank) -> object:
        return {made.name: sorted(made.objects) for made in bank.snapshot().compositions}

    kills, wrong = kill_everywhere(start, keep, objects)
    assert wrong == []
    assert kills > 10


def test_killed_at_every_step_of_removing(start):
    kills, wrong = kill_everywhere(start, lambda bank: bank.remove("a", cascade=True))
    assert wrong == []
    assert kills >= 4  # BEGIN, tasks, compositions, COMMIT


def test_killed_at_every_step_of_collecting(start, kit):
    kit.add_task(Bank.open(start), "gone", weight=9.0)
    Bank.open(start).remove("gone")
    kills, wrong = kill_everywhere(start, lambda bank: bank.gc(dry_run=False, grace_hours=-1))
    assert wrong == []
    assert kills >= 3  # rename, fsync of the folder, unlink


def test_killed_at_every_step_of_replacing(start, kit):
    """One of the two versions answers, never both and never none."""

    def versions(bank: Bank) -> object:
        snapshot = bank.snapshot()
        return {task.name: task.position for task in snapshot.tasks}, [made.name for made in snapshot.compositions]

    def act(bank: Bank) -> None:
        if bank.snapshot().position_of("a") == 1:
            kit.replace_task(bank, "a", weight=5.0)

    assert versions(Bank.open(start)) == ({"a": 1, "b": 2}, ["ab"])
    kills, wrong = kill_everywhere(start, act, versions)
    assert wrong == []
    assert kills > 30
    assert versions(Bank.open(start.parent / "whole")) == ({"b": 2, "a": 3}, [])


@pytest.mark.slow
def test_killed_at_every_step_of_creating(folder, kit):
    step = 0
    while True:
        step += 1
        path = folder / str(step)
        if not run_killed(lambda path=path: Bank.create(path, kit.base), step):
            break
        if not Bank.exists(path):
            Bank.create(path, kit.base)
        assert Bank.open(path).snapshot().base == kit.base
        assert Bank.open(path).verify(full=True) == []
        Bank.open(path).gc(dry_run=False, grace_hours=0)
        assert list((path / "staging").iterdir()) == []
    assert step > 15


def test_the_harness_finds_a_commit_before_its_files(start, kit, monkeypatch):
    """A harness that finds nothing proves nothing: rows first, files later must be caught."""

    finish = Operation._finish

    def files_last(operation: Operation) -> None:
        operation._stage.place()
        finish(operation)

    monkeypatch.setattr(Operation, "_place", Operation._hold_lock)
    monkeypatch.setattr(Operation, "_finish", files_last)
    _, wrong = kill_everywhere(start, lambda bank: kit.add_task(bank, "c", weight=3.0))
    assert any("missing" in problem for problem in wrong)


def change_forever(path: Path, kit: object, label: int, says: int) -> None:
    """Add, compose and remove until killed; each line says what begins or what is done, with the names it changes."""
    generator = random.Random(label)
    bank = Bank.open(path)
    tasks: list[str] = []
    for number in range(10_000):
        kind = generator.choice(("add", "add", "compose", "remove")) if len(tasks) > 1 else "add"
        changed: tuple[str, ...] = (f"t{label}-{number}",)
        if kind == "remove":
            target = tasks.pop(generator.randrange(len(tasks)))
            changed = bank.remove(target, cascade=True, dry_run=True)
        os.write(says, f"begin {kind} {' '.join(changed)}\n".encode())
        if kind == "add":
            kit.add_task(bank, changed[0], weight=float(label * 1000 + number))
            tasks.append(changed[0])
        elif kind == "compose":
            kit.compose(bank, changed[0], (tasks[-1],), content=changed[0].encode())
        else:
            bank.remove(target, cascade=True)
        os.write(says, f"done {kind} {' '.join(changed)}\n".encode())


@pytest.mark.slow
def test_killed_fifty_times_at_random_nothing_acknowledged_is_lost(bank, kit):
    generator = random.Random(20)
    expected: set[str] = set()
    acknowledged = cut_off = 0
    for label in range(50):
        hears, says = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                change_forever(bank.path, kit, label, says)
            finally:
                os._exit(1)
        os.close(says)
        with os.fdopen(hears) as lines:
            said = [lines.readline() for _ in range(generator.randrange(1, 9))]
            time.sleep(generator.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            said += lines.readlines()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        uncertain: set[str] = set()
        for line in said:
            what, kind, *changed = line.split()
            uncertain = set(changed) if what == "begin" else set()
            if what == "done":
                acknowledged += 1
                expected = expected - set(changed) if kind == "remove" else expected | set(changed)
        cut_off += bool(uncertain)
        found = names(Bank.open(bank.path))
        assert found - uncertain == expected - uncertain, f"kill {label}"
        assert uncertain <= found or not uncertain & found, f"kill {label}: half of a change"
        assert bank.verify(full=True) == [], f"kill {label}"
        expected = found  # what was under way has ended one way or the other
    assert acknowledged > 70
    assert cut_off > 25
    kit.add_task(bank, "after-all")
    bank.gc(dry_run=False, grace_hours=-1)
    assert bank.verify(full=True) == []
    assert list((bank.path / "staging").iterdir()) == list((bank.path / "work").iterdir()) == []
