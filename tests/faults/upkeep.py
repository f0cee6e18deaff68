"""Backup, restore, repair and upgrade as they are typed, on banks that need them, and the judgement on what is left.

Their places hold, beside ``bank``, a copy of it: ``copy``. What the bank had before must be found afterwards, in the
bank itself, in a copy of its database or in the one set aside; what was damaged before may still be, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Hashable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lorabank_cli.main import main

from lorabank.bank.bank import Bank
from lorabank.bank.objects.layout import Layout
from lorabank.bank.upkeep.backup import back_up_database, copy_bank
from lorabank.bank.upkeep.copies import copies
from lorabank.core.errors import IncompatibleError, LorabankError
from tests.faults.outcome import Outcome
from tests.faults.processes import kept_folder
from tests.faults.workload import KIT, Command, contents, filled, half_files, littered, old, opened


@dataclass(frozen=True)
class Typed(Command):
    """A command line; ``{place}`` in its words stands for the place."""

    words: tuple[str, ...] = ()

    def line(self, place: Path) -> list[str]:
        """The words of a call on the bank of a place."""
        return [*(word.format(place=place) for word in self.words), "--bank", str(place / "bank")]


def typed(name: str, start: Callable[[], Path], look: Callable[[Path], Hashable], *words: str) -> Typed:
    """A command line that is run in this process."""

    def act(place: Path) -> None:
        with _silent():
            code = main(command.line(place))
        if code:
            raise Ended(code)

    command = Typed(name, start, act, look, words)
    return command


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing is written to the standard streams meanwhile."""
    nothing, kept = os.open(os.devnull, os.O_RDWR), (os.dup(1), os.dup(2))
    try:
        for stream in (1, 2):
            os.dup2(nothing, stream)
        yield
    finally:
        for stream, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, stream)
        for descriptor in (nothing, *kept):
            os.close(descriptor)


class Ended(LorabankError):
    """A command line that ended with another code than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with {code}")
        self.exit_code = code


def flip(path: Path) -> None:
    """Change the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))


def _weights(bank: Path) -> Path:
    digest = Bank.open(bank).snapshot().adapter_of("b").digest
    return bank / "adapters" / digest / "adapter_model.safetensors"


@cache
def copied() -> Path:
    """A bank, a rotten copy of how it was, and a task that came since."""
    place = Path(shutil.copytree(filled(), kept_folder() / "copied"))
    copy_bank(Layout(place / "bank"), place / "copy")
    KIT.add_task(opened(place), "c", weight=3.0)
    flip(_weights(place / "copy"))
    return place


@cache
def went_on() -> Path:
    """A bank with a copy of its database, and what changed since."""
    place = Path(shutil.copytree(filled(), kept_folder() / "went-on"))
    made = back_up_database(Layout(place / "bank")).path
    shutil.copyfile(made, place / "old.db")
    KIT.compose(opened(place), "since", ("a",), content=KIT.safetensors(0.125))
    return place


@cache
def rotten() -> Path:
    """A littered bank with a damaged adapter and a lost blob, and a sound copy."""
    place = Path(shutil.copytree(littered(), kept_folder() / "rotten"))
    bank = opened(place)
    copy_bank(Layout(place / "bank"), place / "copy")
    flip(_weights(place / "bank"))
    statistics = str(bank.snapshot().task("a").statistics)
    (place / "bank" / "blobs" / statistics[:2] / statistics).unlink()
    return place


def _both(place: Path) -> Hashable:
    return contents(place), frozenset(names(place / "copy" / "bank.db"))


def _with_schema(place: Path) -> Hashable:
    try:
        return "new", contents(place)
    except IncompatibleError:
        return "old", frozenset(names(place / "bank" / "bank.db"))


UPKEEP = (
    typed("backup", filled, contents, "backup"),
    typed("backup FOLDER", copied, _both, "backup", "{place}/copy"),
    typed("restore FILE", went_on, contents, "restore", "{place}/old.db", "--yes"),
    typed("restore FOLDER", rotten, contents, "restore", "{place}/copy", "--yes"),
    typed("repair", rotten, contents, "doctor", "--repair", "--from", "{place}/copy"),
    typed("db upgrade", old, _with_schema, "db", "upgrade"),
)


def names(database: Path) -> set[str]:
    """What a database holds by name, whatever its schema."""
    mode = "rw" if database.with_name(f"{database.name}-wal").exists() else "ro&immutable=1"
    with closing(sqlite3.connect(f"{database.as_uri()}?mode={mode}", uri=True)) as connection:
        queries = (f"SELECT name FROM {table} WHERE state = 'ready'" for table in ("tasks", "compositions"))
        return {row[0] for query in queries for row in connection.execute(query)}


@dataclass(frozen=True)
class Upkeep:
    """A command with its place before and after, what the bank had by name, and what was found in it."""

    command: Typed
    before: Hashable
    after: Hashable
    had: frozenset[str]
    findings: frozenset[str]


def case(command: Typed, folder: Path) -> Upkeep:
    """Run the command once, undisturbed: this also imports everything that a child will need."""
    place = command.place(folder / f"whole-{command.name.replace(' ', '-')}")
    before, had, findings = command.look(place), names(place / "bank" / "bank.db"), _findings(place)
    command.act(place)
    found = Upkeep(command, before, command.look(place), frozenset(had), frozenset(findings))
    shutil.rmtree(place)
    return found


def judge(case: Upkeep, place: Path, *, acknowledged: bool, outcome: Outcome, where: str) -> None:
    """Look at what a fault left, then run the command once more to its end."""
    try:
        _judge_state(case, place, acknowledged, outcome, where)
        if not outcome.findings:
            case.command.act(place)
            _judge_state(case, place, True, outcome, f"{where}, a second attempt")
    except LorabankError as error:
        outcome.find("damaged", f"{where}: {type(error).__name__}: {error.message}")
    except Exception as error:
        outcome.find("uncaught", f"{where}: {type(error).__name__}: {error}")


def _judge_state(case: Upkeep, place: Path, acknowledged: bool, outcome: Outcome, where: str) -> None:
    found = case.command.look(place)
    if acknowledged and found != case.after:
        outcome.find("lost", f"{where}: acknowledged, and not there")
    elif found not in (case.before, case.after):
        outcome.find("damaged", f"{where}: neither before nor after: {found}")
    layout = Layout(place / "bank")
    aside = sorted((layout.root / "quarantine").glob("*-database/bank.db"))  # one that could not be read
    kept = [names(path) for path in (layout.database, *copies(layout), *aside)]
    if not any(case.had <= one for one in kept):
        outcome.find("lost", f"{where}: what the bank had is in none of {len(kept)} databases: {kept}")
    new = _findings(place) - (frozenset() if acknowledged else case.findings)
    for finding in sorted(new):
        outcome.find("damaged", f"{where}: {finding}")


def _findings(place: Path) -> set[str]:
    """What is wrong with the bank and its copy; of an older schema only the upgrade can tell more."""
    found = set[str]()
    for bank in filter(Bank.exists, (place / "bank", place / "copy")):
        try:
            problems = [finding.subject for finding in Bank.open(bank).verify(full=True)]
        except IncompatibleError:
            problems = []
        found.update(f"{bank.name}: {problem}" for problem in (*problems, *half_files(bank)))
    return found
