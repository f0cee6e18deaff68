"""F20: banks that somebody prepared, through every command that opens one.

Rollback journals that name a file of the user, pipes, links, folders, sockets and second names beside the database,
schemas that differ in one clause, views and pages without an end, rows that no record can be made of though their
digests fit. Each command must end by itself with exit code 8 and one line (a copy of a bank with strange rows may be
made: it is the same bank), and nothing outside the bank may change.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, Say, ended, scratch
from tests.faults.workload import filled, opened
from tests.unit.bank import prepared

SECONDS = 20
"""After this a command hangs."""

REFUSED = frozenset({8})
NOT_READ = frozenset({0, 2, 3, 5, 6, 8})
"""What a command may end with that does not look at what was prepared; the base of these banks is not there."""


class Case(NamedTuple):
    """A prepared bank.

    Attributes:
        name: In a few words.
        prepare: What is done to a place, which holds a bank and a file of the user.
        reading: Exit codes that are right for commands that make records of the rows.
        keeping: Those that are right for commands that copy or check.
    """

    name: str
    prepare: Callable[[Path], object]
    reading: frozenset[int] = REFUSED
    keeping: frozenset[int] = REFUSED


_BANK = ("--bank", "{place}/bank")
READING = {
    "list": ("list", *_BANK),
    "show": ("show", "a", *_BANK),
    "verify": ("verify", "--full", *_BANK),
    "remove, dry": ("remove", "a", "--cascade", "--dry-run", *_BANK),
    "compose": ("compose", "--mode", "manual", "--name", "mine", *_BANK),
    "predict": ("predict", "text", *_BANK),
    "eval": ("eval", *_BANK),
    "export": ("export", "a", "{place}/exported", *_BANK),
    "report": ("report", "{place}/report.html", *_BANK),
    "doctor": ("doctor", *_BANK),
}
"""Commands that make records of the rows."""

KEEPING = {
    "gc": ("gc", *_BANK),
    "gc, dry": ("gc", "--dry-run", *_BANK),
    "backup": ("backup", *_BANK),
    "copy": ("backup", "{place}/copy", *_BANK),
    "upgrade": ("db", "upgrade", *_BANK),
    "upgrade, dry": ("db", "upgrade", "--dry-run", *_BANK),
    "restore its file": ("restore", "{place}/bank/bank.db", "--yes", "--bank", "{place}/sound"),
    "restore all of it": ("restore", "{place}/bank", "--yes", "--bank", "{place}/new"),
    "repair": ("doctor", "--repair", *_BANK),
}
"""Commands that copy or check what is there."""


def run(count: int | None, seed: int) -> Outcome:
    """All of them, or ``count`` chosen by ``seed``, with one of each kind among them."""
    outcome = Outcome()
    kinds = [[*kind] for kind in _kinds()]
    cases = [case for kind in kinds for case in kind]
    if count is not None:
        chance = random.Random(seed)
        first = [chance.choice(kind) for kind in kinds]
        others = [case for case in cases if case not in first]
        cases = [*first, *chance.sample(others, min(max(0, count - len(first)), len(others)))]
    _import_what_commands_need()
    with scratch() as folder:
        for number, case in enumerate(cases):
            place = Path(shutil.copytree(filled(), folder / str(number)))
            shutil.copytree(place / "bank", place / "sound")
            (place / "thesis").write_bytes(b"years of work")
            case.prepare(place)
            _try_out(place, case, outcome)
            shutil.rmtree(place)
            if outcome.enough:
                break
    return outcome


def _kinds() -> Iterator[Iterator[Case]]:
    for mode in ("WAL", "DELETE"):
        yield iter([Case(f"a journal that names a file, {mode}", partial(_plant_journal, mode=mode))])
    yield (
        Case(f"a {kind} as bank.db-{end}", partial(_put, kind=kind, end=end))
        for end in ("journal", "wal", "shm")
        for kind in prepared.PUT
    )
    yield iter([Case("an endless view", lambda place: prepared.change(opened(place), *prepared.ENDLESS_VIEW))])
    yield iter([Case("endless pages", lambda place: prepared.endless_pages(opened(place)), NOT_READ, NOT_READ)])
    yield (Case(statement, partial(_change, statement=statement)) for statement in prepared.STATEMENTS)
    yield (
        Case(f"{table}: {old} -> {new}", partial(_remake, table=table, old=old, new=new))
        for table, old, new in prepared.DEFINITIONS
    )
    for often in ("tasks", "adapters"):
        yield (_row(*one) for one in prepared.ROWS if one[0] == often)
    yield (_row(*one) for one in prepared.ROWS if one[0] not in ("tasks", "adapters"))


def _row(table: str, changes: dict[str, object]) -> Case:
    reading = NOT_READ if table == "evaluations" else REFUSED
    return Case(f"{table}: {changes}"[:80], partial(_rewrite, table=table, changes=changes), reading, NOT_READ)


def _plant_journal(place: Path, mode: str) -> None:
    database = place / "bank" / "bank.db"
    prepared.change(opened(place), f"PRAGMA journal_mode = {mode}")
    data = prepared.journal(database, super_journal=place / "thesis")
    database.with_name("bank.db-journal").write_bytes(data)


def _put(place: Path, kind: str, end: str) -> None:
    with contextlib.chdir(place):
        prepared.PUT[kind](place / "bank" / f"bank.db-{end}", place / "thesis")


def _change(place: Path, statement: str) -> None:
    prepared.change(opened(place), statement)


def _remake(place: Path, table: str, old: str, new: str) -> None:
    prepared.remake(opened(place), table, old, new)


def _rewrite(place: Path, table: str, changes: dict[str, object]) -> None:
    prepared.rewrite(opened(place), table, **changes)


def _import_what_commands_need() -> None:
    """Once, before the forks."""


def _try_out(place: Path, case: Case, outcome: Outcome) -> None:
    commands = READING | KEEPING

    def act(say: Say) -> None:
        from lorabank_cli.main import main

        os.chdir(place)
        for command, words in commands.items():
            say(f"begin {command}")
            signal.alarm(SECONDS)
            written = io.StringIO()
            with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
                code = main([word.format(place=place) for word in words])
            signal.alarm(0)
            allowed = case.reading if command in READING else case.keeping
            if code not in allowed or "Traceback" in written.getvalue():
                say(f"{command}: exit {code}: {' '.join(written.getvalue()[-200:].split())}")

    code, said = ended(act)
    outcome.tries += len([line for line in said if line.startswith("begin ")])
    problems = [line for line in said if not line.startswith("begin ")]
    if code != ENDED:
        problems.append(
            f"{said[-1] if said else 'nothing'}: {'it hangs' if code == -signal.SIGALRM else f'exit {code}'}"
        )
    for problem in problems:
        outcome.find("uncaught", f"{case.name}: {problem}")
    thesis = place / "thesis"
    if not thesis.is_file() or thesis.read_bytes() != b"years of work":
        outcome.find("lost", f"{case.name}: a file outside the bank was changed")
