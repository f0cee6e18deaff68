"""F7: no space, and a disk that fails.

Three ways, each on add, import, compose, remove, gc, export and migrate: a small file system in memory (tmpfs)
filled so that a random number of KiB is left (needs root); a limit on the size of a file (``RLIMIT_FSIZE``) at a
random value; and EIO or ENOSPC returned by strace from each write, sync and truncation, one at a time. The check for
free space that comes first is switched off, so that the writes themselves fail. The command either succeeds, or ends
with ``StorageError`` (exit code 10); the bank is as before or as after, can be read while the disk is full, and
works once there is space.

EIO is also returned from each read, of these commands and of backup, restore, repair and upgrade as they are typed:
what cannot be read may be named as damaged (exit code 8), and is no reason to lose anything.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabank.bank import creation, operations
from lorabank.bank.objects import store
from lorabank.bank.upkeep import backup
from lorabank.core.errors import DamagedError, LorabankError, StorageError
from tests.faults import upkeep
from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, Say, cannot_mount, ended, mounted, scratch
from tests.faults.tracing import cannot_trace, counted, disturbed
from tests.faults.workload import COMMANDS, Case, case, has_log, judge

FAILING = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate")
ERRORS = ("EIO", "ENOSPC")
READS = ("read", "pread64")
MOST_FREE = 700
"""KiB left at most: more than any of the commands writes."""


def run(count: int | None, seed: int) -> Outcome:
    """``count`` tries of each of the two random ways, 100 unless said otherwise, and every failing call or as many."""
    chance = random.Random(seed)
    outcome = Outcome()
    with scratch() as folder, small_disks_allowed():
        cases = [case(command, folder) for command in COMMANDS]
        if reason := cannot_mount():
            outcome.notes.append(f"no full file system: {reason}")
        else:
            _full(cases, folder, count or 100, chance, outcome)
        _limited(cases, folder, count or 100, chance, outcome)
        if reason := cannot_trace():
            outcome.notes.append(f"no failing calls: {reason}")
        else:
            _failing(cases, folder, count, chance, outcome)
            _failing_reads(cases, folder, count, chance, outcome)
    return outcome


@contextmanager
def small_disks_allowed() -> Iterator[None]:
    """Without the look at the free space, here and in every fork."""
    modules: tuple[Any, ...] = (backup, creation, operations, store)
    sound = store.check_space
    for module in modules:
        module.check_space = lambda *_: None
    try:
        yield
    finally:
        for module in modules:
            module.check_space = sound


def _full(cases: list[Case], folder: Path, count: int, chance: random.Random, outcome: Outcome) -> None:
    with mounted(folder / "disk", "-t", "tmpfs", "-o", "size=4m", "none") as disk:
        for number in range(count):
            one = cases[number % len(cases)]
            free = chance.randrange(0, MOST_FREE)
            place = one.command.place(disk / "place")
            _fill(disk / "ballast", free)
            code, said = ended(acting(one, place))
            where = f"{one.command.name} with {free} KiB free"
            _check_end(code, said, outcome, where)
            # A log that a failed writer left is read through an index file, which takes 32 KiB.
            if code != ENDED and not has_log(place):
                _read_full(one, place, disk / "ballast", outcome, where)
            (disk / "ballast").unlink()
            judge(one, place, acknowledged=code == ENDED, outcome=outcome, where=where, again=True)
            shutil.rmtree(place)
            outcome.tries += 1
    outcome.notes.append(f"full disk {count}")


def _fill(ballast: Path, free: int) -> None:
    status = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - free * 1024)))


def _read_full(one: Case, place: Path, ballast: Path, outcome: Outcome, where: str) -> None:
    """Fill the last byte, then look: reading needs no space once the writers are gone."""
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            pass
    try:
        one.command.look(place)
    except LorabankError as error:
        outcome.find("uncaught", f"{where}: cannot be read while the disk is full: {error.message}")


def _limited(cases: list[Case], folder: Path, count: int, chance: random.Random, outcome: Outcome) -> None:
    for number in range(count):
        one = cases[number % len(cases)]
        limit = int(2 ** chance.uniform(4, 18))
        place = one.command.place(folder / "place")
        code, said = ended(acting(one, place, lambda limit=limit: _limit(limit)))  # type: ignore[misc]
        where = f"{one.command.name} with files of at most {limit} bytes"
        _check_end(code, said, outcome, where)
        judge(one, place, acknowledged=code == ENDED, outcome=outcome, where=where, again=True)
        shutil.rmtree(place)
        outcome.tries += 1
    outcome.notes.append(f"limited files {count}")


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _failing(cases: list[Case], folder: Path, count: int | None, chance: random.Random, outcome: Outcome) -> None:
    points = []
    for one in cases:
        place = one.command.place(folder / "counted")
        calls = counted(acting(one, place))
        shutil.rmtree(place)
        # the last write is the one that says "done"
        calls["write"] -= 1
        points += [(one, call, k, error) for call in FAILING for k in range(1, calls[call] + 1) for error in ERRORS]
    if count is not None:
        points = chance.sample(points, min(count, len(points)))
    for one, call, k, error in points:
        place = one.command.place(folder / "place")
        code, said = disturbed(acting(one, place), call, f"error={error}:when={k}")
        where = f"{one.command.name} with {error} from {call} {k}"
        _check_end(code, said, outcome, where)
        judge(one, place, acknowledged=code == ENDED, outcome=outcome, where=where, again=True)
        shutil.rmtree(place)
        outcome.tries += 1
    outcome.notes.append(f"failing calls {len(points)}")


def _failing_reads(
    cases: list[Case], folder: Path, count: int | None, chance: random.Random, outcome: Outcome
) -> None:
    kept = [upkeep.case(command, folder) for command in upkeep.UPKEEP]
    points: list[tuple[Case | upkeep.Upkeep, str, int]] = []
    for one in (*cases, *kept):
        place = one.command.place(folder / "counted")
        calls = counted(acting(one, place), READS)
        shutil.rmtree(place)
        # the first read is the one by which the child waits to begin
        points += [(one, call, k) for call in READS for k in range(1 + (call == "read"), calls[call] + 1)]
    if count is not None:
        points = chance.sample(points, min(count, len(points)))
    for one, call, k in points:
        place = one.command.place(folder / "place")
        code, said = disturbed(acting(one, place), call, f"error=EIO:when={k}")
        where = f"{one.command.name} with EIO from {call} {k}"
        if code not in (ENDED, StorageError.exit_code, DamagedError.exit_code):
            outcome.find("uncaught", f"{where}: ended with {code}: {' '.join(said)}")
        if isinstance(one, Case):
            judge(one, place, acknowledged=code == ENDED, outcome=outcome, where=where, again=True)
        else:
            upkeep.judge(one, place, acknowledged=code == ENDED, outcome=outcome, where=where)
        shutil.rmtree(place)
        outcome.tries += 1
    outcome.notes.append(f"failing reads {len(points)}")


def acting(
    one: Case | upkeep.Upkeep, place: Path, first: Callable[[], object] = lambda: None
) -> Callable[[Say], None]:
    """The command in a child, after something that narrows the child down."""

    def act(say: Say) -> None:
        first()
        one.command.act(place)
        say("done")

    return act


def _check_end(code: int, said: list[str], outcome: Outcome, where: str) -> None:
    if code not in (ENDED, StorageError.exit_code):
        outcome.find("uncaught", f"{where}: ended with {code}: {' '.join(said)}")
