"""F1: SIGKILL at random moments of a process that adds, imports, composes, removes and collects without a pause.

The child says through a pipe what it begins and what is done, with the names that change; the parent owns the truth.
After each kill: what was acknowledged is there, what was removed stays away, the change under way has happened as a
whole or not at all, and ``verify --full`` finds nothing. After every forty kills: ``gc`` sweeps all rests, and a fresh
bank begins.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.core.errors import LorabankError
from tests.faults.outcome import Outcome
from tests.faults.processes import FAILED, Child, Say, scratch
from tests.faults.workload import KIT, filled, half_files, opened, swept

KILLS_A_BANK = 40
LONGEST = 0.12
"""Seconds after its begin mark in which a command is killed: a little longer than any takes."""


def run(count: int | None, seed: int) -> Outcome:
    """``count`` kills, 1,000 unless said otherwise."""
    chance = random.Random(seed)
    outcome = Outcome()
    with scratch() as folder:
        left = count or 1000
        while left:
            kills = min(left, KILLS_A_BANK)
            place = Path(shutil.copytree(filled(), folder / "place"))
            _kill_often(place, kills, chance, outcome)
            shutil.rmtree(place)
            left -= kills
    return outcome


def _kill_often(place: Path, kills: int, chance: random.Random, outcome: Outcome) -> None:
    expected = names(opened(place))
    for number in range(kills):
        label = chance.randrange(10**9)
        child = Child(lambda say, label=label: change_forever(place, label, say))  # type: ignore[misc]
        child.begin()
        said = [child.lines.readline().rstrip("\n") for _ in range(chance.randrange(1, 5))]
        time.sleep(chance.uniform(0, LONGEST))
        child.kill()
        said += child.said()
        where = f"kill {number} of the bank, after {said[-1]!r}"
        outcome.tries += 1
        if child.wait() != -signal.SIGKILL:
            outcome.find("uncaught", f"{where}: the child ended by itself")
        try:
            expected = compare(opened(place), expected, said, outcome, where)
        except LorabankError as error:
            outcome.find("damaged", f"{where}: {error.message}")
            return
    try:
        swept(opened(place), outcome, "after the last kill")
    except LorabankError as error:
        outcome.find("damaged", f"after the last kill: {error.message}")


def compare(bank: Bank, expected: set[str], said: list[str], outcome: Outcome, where: str) -> set[str]:
    """Judge a bank by what was there and what was said since; gives what is there now."""
    uncertain: set[str] = set()
    for line in said:
        what, kind, *changed = line.split()
        if what not in ("begin", "done"):
            continue
        uncertain = set(changed) if what == "begin" else set()
        if what == "done":
            expected = expected - set(changed) if kind == "remove" else expected | set(changed)
    found = names(bank)
    if expected - uncertain - found:
        outcome.find("lost", f"{where}: {expected - uncertain - found} are gone")
    if found - uncertain - expected:
        outcome.find("lost", f"{where}: {found - uncertain - expected} came back")
    if uncertain & found and uncertain - found:
        outcome.find("damaged", f"{where}: {uncertain & found} without {uncertain - found}")
    for problem in half_files(bank.path):
        outcome.find("damaged", f"{where}: {problem}")
    for finding in bank.verify(full=True):
        outcome.find("damaged", f"{where}: {finding.subject}: {finding.message}")
    return found


def names(bank: Bank) -> set[str]:
    """Everything in the bank by name."""
    snapshot = bank.snapshot()
    return {task.name for task in snapshot.tasks} | {one.name for one in snapshot.compositions}


def change_forever(place: Path, label: int, say: Say) -> None:
    """Change the bank until killed; ``begin`` and ``done`` lines name what changes."""
    chance = random.Random(label)
    bank = opened(place)
    for number in range(10_000):
        name = f"n{label}-{number}"
        tasks = [task.name for task in bank.snapshot().tasks]
        kind = chance.choice(("add", "import", "compose", "compose", "remove", "gc")) if len(tasks) > 2 else "add"
        target = chance.choice(tasks)
        changed = bank.remove(target, cascade=True, dry_run=True) if kind == "remove" else (name,)
        say(" ".join(["begin", kind, *(changed if kind != "gc" else ())]))
        if kind == "compose":
            KIT.compose(bank, name, (target,), content=name.encode())
        elif kind == "remove":
            bank.remove(target, cascade=True)
        elif kind == "gc":
            bank.gc(dry_run=False, grace_hours=-1)
        else:
            with bank.reserve("add-task" if kind == "add" else "import", name, {}) as operation:
                KIT.commit_task(operation, name, weight=float(label % 10**6 + number))
        say(" ".join(["done", kind, *(changed if kind != "gc" else ())]))
    raise SystemExit(FAILED)
