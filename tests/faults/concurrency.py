"""F8: many processes on one bank.

Eight writers add tasks of their own, four writers all want the same names, four readers run ``verify --full``, one
process collects without grace and one exports, all at once. Then two processes make a bank in one place, and two
upgrade one bank. At the end each row is there and each name once; a reader never sees damage; a writer that has to
wait is told who is at work, never that the database is locked. The collector pauses between reading what is live and
looking at what lies there, so that a missing lock is noticed at once and not once in a thousand runs.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.upkeep import gc
from lorabank.bank.upkeep.upgrade import upgrade_database
from lorabank.core.errors import BusyError, ExistsError, LorabankError
from lorabank.exchange.safe_folders import write_folder
from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, Child, Say, scratch
from tests.faults.workload import COMMANDS, KIT, case, empty, old, opened

WRITERS, RIVALS, READERS = 8, 4, 4
PATIENCE = 300.0
"""Seconds for which a writer goes on trying to get its turn."""


def run(count: int | None, seed: int) -> Outcome:
    """``count`` tasks for each writer, 100 unless said otherwise."""
    outcome = Outcome()
    with scratch() as folder:
        case(COMMANDS[0], folder)  # imports what every child needs
        _crowd(Path(shutil.copytree(empty(), folder / "crowd")), count or 100, seed, outcome)
        _two_create(folder / "made", outcome)
        _two_upgrade(Path(shutil.copytree(old(), folder / "old")), outcome)
    return outcome


def _crowd(place: Path, tasks: int, seed: int, outcome: Outcome) -> None:
    own = [f"w{writer}-{number}" for writer in range(WRITERS) for number in range(tasks)]
    shared = [f"s-{number}" for number in range(tasks)]
    writers = [
        Child(lambda say, w=w: add_all(place, own[w * tasks : (w + 1) * tasks], seed + w, say))  # type: ignore[misc]
        for w in range(WRITERS)
    ]
    rivals = [Child(lambda say, r=r: add_all(place, shared, seed - 1 - r, say)) for r in range(RIVALS)]  # type: ignore[misc]
    helpers = [
        *(Child(lambda say: _again_and_again(place, _verify, say)) for _ in range(READERS)),
        Child(lambda say: _again_and_again(place, _collect, say)),
        Child(lambda say: _again_and_again(place, _export, say)),
    ]
    for child in (*writers, *rivals, *helpers):
        child.begin()
    done = [line for child in (*writers, *rivals) for line in _lines(child, outcome)]
    (place / "over").touch()
    did = Counter(line for child in helpers for line in _lines(child, outcome))
    outcome.tries += len(own) + len(shared)
    outcome.notes.append(", ".join(f"{count} {what}" for what, count in sorted(did.items())))
    for what in ("verified", "collected", "exported"):
        if not did[what]:
            outcome.find("uncaught", f"nothing was {what} beside the writers")
    _compare(opened(place), Counter(done), own + shared, outcome)


def _compare(bank: Bank, done: Counter[str], expected: list[str], outcome: Outcome) -> None:
    found = Counter(task.name for task in bank.snapshot().tasks)
    for name in expected:
        if done[name] != 1:
            outcome.find("uncaught", f"{name} was added {done[name]} times")
        if found[name] != 1:
            outcome.find("lost", f"{name} is in the bank {found[name]} times")
    for finding in bank.verify(full=True):
        outcome.find("damaged", f"at the end: {finding.subject}: {finding.message}")


def _lines(child: Child, outcome: Outcome) -> list[str]:
    said = child.said()
    code = child.wait()
    if code != ENDED:
        outcome.find("uncaught", f"ended with {code}: {said[-1] if said else ''}")
    for line in said:
        if line.startswith("damage"):
            outcome.find("damaged", line)
    return [line for line in said if not line.startswith(("damage", "error"))]


def add_all(place: Path, names: list[str], seed: int, say: Say) -> None:
    """Add a task of each name; whoever was faster with a name has it, and says so."""
    chance = random.Random(seed)
    bank = opened(place)
    for name in names:
        if _add(bank, name, chance):
            say(name)


def _add(bank: Bank, name: str, chance: random.Random) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            KIT.add_task(bank, name, weight=chance.random())
            return True
        except ExistsError:
            return False
        except BusyError as error:
            if error.__cause__ is not None or time.monotonic() > deadline:  # SQLite's own words: "database is locked"
                raise
            time.sleep(chance.uniform(0.002, 0.03))


def _again_and_again(place: Path, action: Callable[[Path, Say], None], say: Say) -> None:
    while not (place / "over").exists():
        try:
            action(place, say)
        except BusyError as error:
            if error.__cause__ is not None:
                raise
        time.sleep(0.02)


def _verify(place: Path, say: Say) -> None:
    for finding in opened(place).verify(full=True):
        say(f"damage {finding.subject}: {finding.message}")
    say("verified")


def _collect(place: Path, say: Say) -> None:
    _pause_before_looking(gc)
    opened(place).gc(dry_run=False, grace_hours=-1)
    say("collected")


def _pause_before_looking(module: Any) -> None:
    look = module._unreferenced
    if look.__name__ == "paused":
        return

    def paused(*arguments: Any) -> Any:
        time.sleep(0.05)
        return look(*arguments)

    module._unreferenced = paused


def _export(place: Path, say: Say) -> None:
    bank = opened(place)
    snapshot = bank.snapshot()
    if snapshot.tasks:
        adapter = snapshot.adapter_of(snapshot.tasks[-1].name)
        folder = bank.verified_adapter(adapter.digest)
        target = place / f"exported-{time.monotonic_ns()}"
        write_folder(target, {name: (folder / name).read_bytes() for name in adapter.files})
        shutil.rmtree(target)
        say("exported")


def _two_create(folder: Path, outcome: Outcome) -> None:
    folder.mkdir()

    def create(say: Say) -> None:
        try:
            Bank.create(folder / "bank", KIT.base)
            say("made")
        except ExistsError:
            say("there")

    ends = _both(create, outcome)
    if sorted(ends) != ["made", "there"]:
        outcome.find("uncaught", f"two processes made a bank: {ends}")
    outcome.tries += 1


def _two_upgrade(place: Path, outcome: Outcome) -> None:
    def upgrade(say: Say) -> None:
        result = upgrade_database(place / "bank")
        say("upgraded" if result.backup else "already")

    ends = _both(upgrade, outcome)
    try:
        findings = opened(place).verify(full=True)
    except LorabankError as error:
        outcome.find("damaged", f"after two upgrades: {error.message}")
        return
    if sorted(ends) != ["already", "upgraded"] or findings:
        outcome.find("damaged", f"two upgrades: {ends}, {findings}")
    outcome.tries += 1


def _both(action: Callable[[Say], None], outcome: Outcome) -> list[str]:
    children = [Child(action) for _ in range(2)]
    for child in children:
        child.begin()
    return [line for child in children for line in _lines(child, outcome)]
