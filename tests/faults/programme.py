"""The harnesses of the fault programme and their sizes, in one table, and the runs of each with its mutants."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.outcome import Outcome, outcome_of
from tests.faults.processes import in_a_fork
from tests.faults.upkeep import UPKEEP
from tests.faults.workload import COMMANDS

Run = Callable[[int | None, int], Outcome | Mapping[str, Any]]
LEVELS = ("push", "nightly", "release")
ATTEMPTS = 3
"""A lock that is missing shows when two processes meet, which a busy machine may put off."""


@dataclass(frozen=True)
class Harness:
    """One line of the table.

    Attributes:
        name: F and a number.
        what: In a few words.
        where: ``module:function`` in ``tests.faults``.
        sizes: The count on each push, at night and before a release; None is everything.
        mutant: The count that is enough to find a mutant.
    """

    name: str
    what: str
    where: str
    sizes: tuple[int | None, int | None, int | None]
    mutant: int | None = None

    def size(self, level: str, share: int) -> int | None:
        """The count of a level, or one of so many shares of it; of everything, what finds a mutant."""
        whole = self.sizes[LEVELS.index(level)]
        if share == 1:
            return whole
        return self.mutant if whole is None else -(-whole // share)

    def run(self, count: int | None, seed: int) -> Outcome:
        """Run it; what it raises is a finding."""
        try:
            return outcome_of(self._function()(count, seed))
        except Exception as error:
            outcome = Outcome()
            outcome.find("uncaught", f"the harness broke: {type(error).__name__}: {error}")
            return outcome

    def _function(self) -> Run:
        module, _, function = self.where.partition(":")
        found: Run = getattr(importlib.import_module(f"tests.faults.{module}"), function)
        return found


HARNESSES = (
    Harness("F1", "SIGKILL at random, storage operations", "random_kills:run", (1000, 10_000, 100_000), 40),
    Harness("F2", "SIGKILL at every system call", "every_call:run", (None, None, None), 200),
    # Fewer on each push than at night: every try trains twice, a second of one slow core.
    Harness("F3", "SIGKILL of add-task in training, resumed", "training_kills:run_f3", (60, 3000, 10_000), 24),
    Harness("F4", "SIGKILL while a checkpoint is saved", "training_kills:run_f4", (30, 600, 2000), 12),
    Harness("F5", "power cut on ext4", "power_cut:run", (50, 500, 5000), 10),
    Harness("F6", "crash states, and every sync taken out", "crash_states:run", (None, None, None), 400),
    Harness("F7", "full disk, limited files, failing calls", "full_disk:run", (100, 2000, 10_000), 40),
    # 100 names for each writer at night: one writer at a time has to work its way through all of them.
    Harness("F8", "14 writers and readers, gc and export", "concurrency:run", (15, 100, 1000), 8),
    Harness("F9", "one bit flipped", "bit_flips:run", (2000, 20_000, 10**9), 300),
    Harness("F10", "files cut, swapped, replaced", "damaged_files:run", (300, None, None), 5),
    Harness("F11", "fuzzed headers, rows, configs, names", "fuzz:run", (100_000, 1_000_000, 10_000_000)),
    Harness("F13", "malicious adapters", "corpus:run", (None, None, None)),
    Harness("F16", "merge drift, same seed same bytes", "merge_drift:run", (1000, 1000, 10_000), 5),
    Harness("F17", "SIGKILL of add-task, resumed in another past", "moved_bank:run", (24, 500, 3000), 9),
    Harness("F18", "SIGKILL of backup, restore, repair, upgrade", "command_kills:run", (24, 600, 3000), 48),
    Harness("F19", "backups and restores under wrong clocks", "clocks:run", (60, 3000, 20_000), 36),
    Harness("F20", "banks that somebody prepared", "prepared_banks:run", (14, None, None), 10),
    Harness("F21", "broken calls to a server", "server_calls:run", (200, 100_000, 1_000_000), 300),
)
"""F12, F14 and F15 are tests of their own: PYTEST below."""

_BY_NAME = {harness.name: harness for harness in HARNESSES}

PYTEST = {
    "F12": "tests/faults/test_state_machine.py",
    "F14": "tests/migrations",
    "F15": "tests/cli/test_text.py",
}


@dataclass(frozen=True)
class Result:
    """What one line of the table came to."""

    name: str
    what: str
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Catch:
    """Which harness caught a mutant, and with what; None for none."""

    mutant: Mutant
    harness: str | None
    example: str
    seconds: float


def run_harnesses(level: str, seed: int, only: frozenset[str], jobs: int, share: int = 1) -> Iterator[Result]:
    """Run the harnesses of a level, or a share of each, ``jobs`` at a time, each in a process of its own."""
    chosen = [harness for harness in HARNESSES if not only or harness.name in only]
    with _pool(jobs) as pool:
        yield from pool.imap(_run, [(harness.name, harness.size(level, share), seed) for harness in chosen])


def run_mutants(seed: int, only: frozenset[str], jobs: int, share: int = 1) -> Iterator[Catch]:
    """Run each mutant, or every so manyth, through the harnesses that should catch it, until one does."""
    chosen = [number for number, mutant in enumerate(MUTANTS) if not only or only & set(mutant.caught_by)][::share]
    with _pool(jobs) as pool:
        yield from pool.imap(_hunt, [(number, only, seed) for number in chosen])


def _pool(jobs: int) -> Any:
    for command in (*COMMANDS, *UPKEEP):
        command.start()  # made once, of sound code, and inherited by all
    return multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1)


def _run(task: tuple[str, int | None, int]) -> Result:
    name, count, seed = task
    harness = _BY_NAME[name]
    began = time.monotonic()
    outcome = harness.run(count, seed)
    return Result(harness.name, harness.what, outcome, time.monotonic() - began)


def _hunt(task: tuple[int, frozenset[str], int]) -> Catch:
    number, only, seed = task
    mutant = MUTANTS[number]
    began = time.monotonic()
    missed = []
    harnesses = [_BY_NAME[name] for name in mutant.caught_by if not only or name in only]
    for attempt, harness in itertools.product(range(ATTEMPTS), harnesses):
        outcome = _spoiled(mutant, harness, seed + attempt)
        if outcome.findings:
            return Catch(mutant, harness.name, outcome.examples[0], time.monotonic() - began)
        missed.append(f"{harness.name}: {outcome.skipped or f'{outcome.tries} tries'}")
    return Catch(mutant, None, "; ".join(missed), time.monotonic() - began)


def _spoiled(mutant: Mutant, harness: Harness, seed: int) -> Outcome:
    def spoil() -> Outcome:
        mutant.apply()
        return harness.run(harness.mutant, seed)

    outcome: Outcome = in_a_fork(spoil)
    return outcome
