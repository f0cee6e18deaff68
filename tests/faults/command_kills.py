"""F18: SIGKILL at random moments of backup, restore, repair and upgrade, as they are typed.

Most are forks of a process that has everything imported, so that the moment falls into the work and not into Python's
beginning; one in twenty is a process of its own. Afterwards the bank opens, ``verify --full`` finds nothing that was
not there before, what the bank had is in it or in a copy of its database, and the same command runs to its end.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.full_disk import acting
from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, Child, ended, scratch
from tests.faults.upkeep import UPKEEP, Upkeep, case, judge

OF_ITS_OWN = 20
"""One in so many kills is that of a process of its own."""


def run(count: int | None, seed: int) -> Outcome:
    """``count`` kills, 120 unless said otherwise."""
    chance = random.Random(seed)
    outcome = Outcome()
    with scratch() as folder:
        cases = [case(command, folder) for command in UPKEEP]
        usual = [_seconds(one, folder) for one in cases]
        for number in range(count or 120):
            if outcome.enough:
                break
            one, longest = cases[number % len(cases)], usual[number % len(cases)]
            place = one.command.place(folder / "killed")
            alone = number % OF_ITS_OWN == OF_ITS_OWN - 1
            wait = chance.uniform(0.3, 1.5) if alone else chance.uniform(0, 1.1 * longest)
            done = _process(one, place, wait) if alone else _fork(one, place, wait)
            where = f"{one.command.name} killed after {wait:.3f} s{' in its own process' if alone else ''}"
            if done not in (ENDED, -signal.SIGKILL):
                outcome.find("uncaught", f"{where}: ended with {done}")
            judge(one, place, acknowledged=done == ENDED, outcome=outcome, where=where)
            shutil.rmtree(place)
            outcome.tries += 1
    return outcome


def _seconds(one: Upkeep, folder: Path) -> float:
    place = one.command.place(folder / "timed")
    began = time.monotonic()
    code, said = ended(acting(one, place))
    took = time.monotonic() - began
    if code != ENDED:
        raise RuntimeError(f"the undisturbed {one.command.name} failed: {said}")
    shutil.rmtree(place)
    return took


def _fork(one: Upkeep, place: Path, wait: float) -> int:
    child = Child(acting(one, place))
    child.begin()
    time.sleep(wait)
    child.kill()
    said = child.said()
    code = child.wait()
    return ENDED if "done" in said else code


def _process(one: Upkeep, place: Path, wait: float) -> int:
    """The installed command; nobody hears what it said before its end, so only an end is an acknowledgement."""
    with subprocess.Popen(
        [sys.executable, "-m", "lorabank_cli", *one.command.line(place)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        time.sleep(wait)
        process.kill()
    return process.returncode
