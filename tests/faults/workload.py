"""The commands that faults are injected into, on small banks, and the judgement on what is left afterwards.

A place is a folder with a bank in it, ``<place>/bank``. Each command has a start, an action and a way to look at the
result; by the invariants a place after a fault looks as before the action or as after it, and as after it once the
action was acknowledged.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Hashable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.bank.objects.base import StoredFile, adapter_digest
from lorabank.bank.objects.canonical import canonical
from lorabank.bank.objects.layout import FOLDERS
from lorabank.bank.objects.store import hash_file
from lorabank.bank.upkeep.upgrade import upgrade_database
from lorabank.core.errors import IncompatibleError, LorabankError
from lorabank.core.records import CompositionRecord
from lorabank.exchange.safe_folders import check_target, write_folder
from tests.faults.outcome import Outcome
from tests.faults.processes import kept_folder
from tests.unit.bank.conftest import Kit

KIT = Kit()
OLD_BANK = Path(__file__).parents[1] / "migrations" / "bank_0001"


@dataclass(frozen=True)
class Command:
    """Something that changes a bank, or writes beside it.

    Attributes:
        name: The verb.
        start: The template that a place is copied from.
        act: The action, given the place.
        look: What of the place the command changes, comparable.
    """

    name: str
    start: Callable[[], Path]
    act: Callable[[Path], object]
    look: Callable[[Path], Hashable]

    def place(self, path: Path) -> Path:
        """A fresh place at ``path``."""
        return Path(shutil.copytree(self.start(), path))


@dataclass(frozen=True)
class Case:
    """A command with what its place looks like before and after."""

    command: Command
    before: Hashable
    after: Hashable


def opened(place: Path) -> Bank:
    """The bank of a place."""
    return Bank.open(place / "bank")


def has_log(place: Path) -> bool:
    """Whether SQLite's log holds anything that is not in the database yet."""
    log = place / "bank" / "bank.db-wal"
    return log.exists() and log.stat().st_size > 0


def contents(place: Path) -> Hashable:
    """What the bank holds: names, and digests of what must not change."""
    snapshot = opened(place).snapshot()
    tasks = {(task.name, f"{task.adapter} {snapshot.adapter_of(task.name).context}") for task in snapshot.tasks}
    return frozenset(tasks | {(one.name, described(one)) for one in snapshot.compositions})


def described(composition: CompositionRecord) -> str:
    """A composition without its time."""
    return canonical([composition.mode, composition.members, composition.parameters, composition.objects])


def _contents_and_export(place: Path) -> Hashable:
    target = place / "exported"
    if not target.exists():
        return contents(place), None
    return contents(place), frozenset((path.name, hash_file(path)) for path in target.iterdir())


def _schema_and_contents(place: Path) -> Hashable:
    try:
        return "new", contents(place), _backups(place)
    except IncompatibleError:
        database = place / "bank" / "bank.db"
        # As lorabank reads: without a log the file is all there is, and a full disk has no room for an index.
        mode = "rw" if has_log(place) else "ro&immutable=1"
        with closing(sqlite3.connect(f"{database.as_uri()}?mode={mode}", uri=True)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
            return (
                "old",
                verdict,
                frozenset(connection.execute("SELECT name, state, row_digest FROM tasks").fetchall()),
            )


def _backups(place: Path) -> list[object]:
    """Schema revision and soundness of each backup: an upgrade that has happened has one that can be put back."""
    found: list[object] = []
    for backup in sorted((place / "bank" / "backups").glob("*.db")):
        try:
            with closing(sqlite3.connect(f"{backup.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
                (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
                found.append((verdict, connection.execute("SELECT version_num FROM alembic_version").fetchone()))
        except sqlite3.DatabaseError as error:
            found.append(str(error))
    return found[-1:]  # one that a killed attempt left may lie beside it


# ------------------------------------------------------------------------------------------------ where they begin


@cache
def _templates() -> Path:
    return kept_folder()


@cache
def empty() -> Path:
    """A place with an empty bank."""
    place = _templates() / "empty"
    Bank.create(place / "bank", KIT.base)
    return place


@cache
def filled() -> Path:
    """A place with two tasks, the second on top of the first, a composition, a tombstone and a score."""
    place = Path(shutil.copytree(empty(), _templates() / "filled"))
    bank = opened(place)
    first = KIT.add_task(bank, "a", weight=1.0)
    KIT.add_task(bank, "b", weight=2.0, context=(first.adapter,))
    KIT.compose(bank, "ab", ("a", "b"), content=KIT.safetensors(0.5))
    KIT.compose(bank, "doomed", ("b",), content=KIT.safetensors(0.25))
    bank.remove("doomed")
    bank.add_evaluations([KIT.evaluation()])
    return place


@cache
def littered() -> Path:
    """As ``filled``, with a removed task whose files nothing needs any more, and what a killed process left."""
    place = Path(shutil.copytree(filled(), _templates() / "littered"))
    bank = opened(place)
    KIT.add_task(bank, "gone", weight=9.0)
    bank.remove("gone")
    left = place / "bank" / "staging" / ("0" * 32)
    left.mkdir()
    (left / "0000-half").write_bytes(b"half a file")
    return place


@cache
def old() -> Path:
    """A place with the bank that the first schema's version wrote."""
    place = _templates() / "old"
    bank = Path(shutil.copytree(OLD_BANK, place / "bank"))
    dump = bank / "bank.sql"
    with closing(sqlite3.connect(bank / "bank.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {0x4C6F5242}")
        connection.executescript(dump.read_text(encoding="utf-8"))
    dump.unlink()
    for name in FOLDERS:
        (bank / name).mkdir(exist_ok=True)
    return place


# ---------------------------------------------------------------------------------------------------- the commands


def _import(place: Path) -> None:
    """What ``import`` does to a bank: a reservation of its own kind and an adapter without data sets' rows."""
    bank = opened(place)
    with bank.reserve("import", "foreign", {}) as operation:
        KIT.commit_task(operation, "foreign", weight=5.0)


def _export(place: Path) -> None:
    """What ``export`` does with a task's own adapter: checked, copied beside the target, synced, renamed."""
    bank, target = opened(place), place / "exported"
    check_target(target, bank.path)
    write_folder(target, bank.adapter_files(bank.snapshot().adapter_of("a").digest))


COMMANDS = (
    Command("add", filled, lambda place: KIT.add_task(opened(place), "c", weight=3.0), contents),
    Command("import", filled, _import, contents),
    Command(
        "compose",
        filled,
        lambda place: KIT.compose(opened(place), "mix", ("b",), content=KIT.safetensors(0.75)),
        contents,
    ),
    Command("remove", filled, lambda place: opened(place).remove("a", cascade=True), contents),
    Command("gc", littered, lambda place: opened(place).gc(dry_run=False, grace_hours=-1), contents),
    Command("export", filled, _export, _contents_and_export),
    Command("migrate", old, lambda place: upgrade_database(place / "bank"), _schema_and_contents),
)


_READERS: list[sqlite3.Connection] = []


def hold_open(place: Path) -> None:
    """Read the bank and stay, to the end of this process: nobody then moves the log into the database at a close."""
    reader = sqlite3.connect(place / "bank" / "bank.db")
    reader.execute("SELECT count(*) FROM tasks").fetchone()
    _READERS.append(reader)


def _add_beside_a_reader(place: Path) -> None:
    hold_open(place)
    KIT.add_task(opened(place), "c", weight=3.0)


BESIDE_A_READER = Command("add beside a reader", filled, _add_beside_a_reader, contents)
"""What is acknowledged lies in the log alone, so that the commit's own sync is all that keeps it."""


def case(command: Command, folder: Path) -> Case:
    """Run the command once, undisturbed: this also imports everything that a child will need."""
    place = command.place(folder / f"whole-{command.name}")
    before = command.look(place)
    command.act(place)
    after = command.look(place)
    while _READERS:
        _READERS.pop().close()
    shutil.rmtree(place)
    return Case(command, before, after)


# ---------------------------------------------------------------------------------------------------- the judgement


def judge(case: Case, place: Path, *, acknowledged: bool, outcome: Outcome, where: str, again: bool) -> None:
    """Look at what a fault left, and count what must not be.

    Args:
        case: The command that was disturbed.
        place: What is left.
        acknowledged: Whether the command had said that it was done.
        outcome: Where findings are counted.
        where: The fault, in words.
        again: Also run the command once more and collect: nothing that was left may be in the way.
    """
    try:
        found = case.command.look(place)
        if acknowledged and found != case.after:
            outcome.find("lost", f"{where}: acknowledged, and not there")
        elif found not in (case.before, case.after):
            outcome.find("damaged", f"{where}: neither before nor after: {found}")
        _sound(case, place, outcome, where)
        if again and not outcome.findings:
            if found != case.after:
                case.command.act(place)
            if case.command.look(place) != case.after:
                outcome.find("uncaught", f"{where}: a second attempt gave something else")
            swept(opened(place), outcome, where)
    except LorabankError as error:
        outcome.find("damaged", f"{where}: {type(error).__name__}: {error.message}")
    except Exception as error:
        outcome.find("uncaught", f"{where}: {type(error).__name__}: {error}")


def _sound(case: Case, place: Path, outcome: Outcome, where: str) -> None:
    for problem in half_files(place / "bank"):
        outcome.find("damaged", f"{where}: {problem}")
    try:
        findings = opened(place).verify(full=True)
    except IncompatibleError:
        if case.command.look(place) != case.before:
            raise
        return  # the old schema, which only the upgrade opens
    for finding in findings:
        outcome.find("damaged", f"{where}: {finding.subject}: {finding.message}")


def half_files(bank: Path) -> list[str]:
    """Files and folders that stand under a digest and are not what it says, referred to or not."""
    problems = []
    for folder in (bank / "adapters").glob("*"):
        stored = [StoredFile(file.name, *hash_file(file)) for file in folder.iterdir()]
        if adapter_digest(stored) != folder.name:
            problems.append(f"adapter {folder.name[:12]} is not what its name says")
    for file in (bank / "blobs").glob("??/*"):
        if hash_file(file)[0] != file.name:
            problems.append(f"blob {file.name[:12]} is not what its name says")
    return problems


def swept(bank: Bank, outcome: Outcome, where: str) -> None:
    """Collect, and find what is left that should have gone, or gone that should be there."""
    bank.gc(dry_run=False, grace_hours=-1)
    for name in ("staging", "work", "trash"):
        for entry in os.listdir(bank.path / name):
            outcome.find("uncaught", f"{where}: {name}/{entry} was left")
    for finding in bank.verify(full=True):
        outcome.find("damaged", f"{where}, after gc: {finding.subject}: {finding.message}")
