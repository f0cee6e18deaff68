"""F10: files that are cut short, zeroed, swapped, gone, unreadable or something else than a file.

Each file of a small bank in turn is truncated at every length (bank.json, configs, small blobs and tensors; of the
database every 64 bytes), filled with zeros, deleted, made unreadable (looked at as another user, when this one is
root), swapped with another file, and replaced by a link, a pipe and a folder. ``verify --full`` must name the file
or end with ``DamagedError`` (exit code 8), loading the adapter or blob must end with ``DamagedError``, the other
adapters must still load, and nothing may hang. Two checks have no file to damage: a row that refers to nothing is
refused when it is written, and one that got in all the same is found.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.base import RowRefused
from lorabank.bank.catalog.rows import sealed
from lorabank.core.errors import DamagedError, LorabankError, NotFoundError, StorageError
from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, Say, ended, scratch
from tests.faults.workload import filled, opened

NOBODY = 65534
SECONDS = 10
"""After this a look at the bank hangs."""

Damage = tuple[str, Callable[[Path], object]]


def run(count: int | None, seed: int) -> Outcome:
    """All of them; or of the lengths to cut to only ``count`` chosen by ``seed``."""
    outcome = Outcome()
    with scratch() as folder:
        folder.chmod(0o755)
        bank = opened(Path(shutil.copytree(filled(), folder / "place")))
        kept = folder / "kept"
        cases = [(file, name, damage) for file in _files(bank) for name, damage in _damages(file, bank)]
        if count is not None:
            cuts = [one for one in cases if one[1].startswith("cut")]
            kept_cuts = random.Random(seed).sample(cuts, min(count, len(cuts)))
            cases = [one for one in cases if one not in cuts or one in kept_cuts]
        shutil.copytree(bank.path, kept)
        for file, name, damage in cases:
            damage(file)
            _look(bank, file, name, outcome)
            shutil.rmtree(bank.path)
            shutil.copytree(kept, bank.path)
            outcome.tries += 1
            if outcome.enough:  # what hangs does so for seconds
                return outcome
        _rows(bank, outcome)
    return outcome


def _files(bank: Bank) -> list[Path]:
    stored = [path for name in ("adapters", "blobs") for path in (bank.path / name).rglob("*") if path.is_file()]
    return sorted([*_needed(bank, stored), bank.path / "bank.json", bank.path / "bank.db"])


def _needed(bank: Bank, stored: list[Path]) -> list[Path]:
    """Without the files of removed compositions, which nothing needs any more."""
    needed = []
    for path in stored:
        hidden = path.with_name("hidden")
        path.rename(hidden)
        if bank.verify(full=False):
            needed.append(path)
        hidden.rename(path)
    return needed


def _damages(file: Path, bank: Bank) -> Iterator[Damage]:
    size = file.stat().st_size
    for length in range(0, size, 64 if file.name == "bank.db" else 1):
        yield f"cut to {length} bytes", lambda path, length=length: _write(path, path.read_bytes()[:length])
    yield "zeroed", lambda path: _write(path, bytes(path.stat().st_size))
    yield "deleted", Path.unlink
    yield "unreadable", lambda path: path.chmod(0)
    yield "a link", _to_link
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path))
    yield "a folder", lambda path: (path.unlink(), path.mkdir())
    others = [other for other in _all_blobs(bank) if other != file]
    if file.is_relative_to(bank.path / "blobs"):
        yield "swapped", lambda path: _swap(path, others[0])


def _all_blobs(bank: Bank) -> list[Path]:
    return sorted(path for path in (bank.path / "blobs").rglob("*") if path.is_file())


def _write(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def _to_link(path: Path) -> None:
    bank = next(parent for parent in path.parents if (parent / "bank.json").exists())
    shutil.move(path, bank.parent / "elsewhere")
    path.symlink_to(bank.parent / "elsewhere")


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    _write(one, second)
    _write(other, first)


# ---------------------------------------------------------------------------------------------------- what must happen


def _look(bank: Bank, file: Path, damage: str, outcome: Outcome) -> None:
    """In a child, which may lose its rights and may hang."""
    as_nobody = damage == "unreadable" and os.geteuid() == 0
    if as_nobody:
        for path in (bank.path, *bank.path.rglob("*")):
            os.chown(path, NOBODY, NOBODY)

    def look(say: Say) -> None:
        signal.alarm(SECONDS)
        if as_nobody:
            os.setuid(NOBODY)
        for problem in _problems(bank, file, damage):
            say(problem)

    code, said = ended(look)
    if code == -signal.SIGALRM:
        said.append("it hangs")
    elif code != ENDED and not said:
        said.append(f"ended with {code}")
    for problem in said:
        outcome.find("uncaught", f"{file.relative_to(bank.path)} {damage}: {problem}")


def _problems(bank: Bank, file: Path, damage: str) -> Iterator[str]:
    """What is not as it should be, with a bank one of whose files is damaged."""
    try:
        findings = Bank.open(bank.path).verify(full=True)
        named = file.name if file.parent.name != "blobs" and len(file.name) < 64 else file.name[:12]
        if (
            not findings
            and file.name == "bank.json"
            and damage.startswith("cut")
            and not damage.startswith("cut to 0")
        ):
            return  # without its last line break it says the same: the manifest is compared field by field
        if not findings:
            yield "not found by verify --full"
        elif not any(named in f"{finding.subject} {finding.message}" for finding in findings):
            yield f"found, but not named: {findings[0]}"
    except DamagedError as error:
        if file.name not in error.message and str(bank.path) not in error.message:
            yield f"not named: {error.message}"
        return
    except LorabankError as error:
        allowed = StorageError if damage == "unreadable" else NotFoundError if file.name == "bank.json" else ()
        if not isinstance(error, allowed):
            yield f"{type(error).__name__} ({error.exit_code}): {error.message}"
        return
    yield from _loading(bank, file)


def _loading(bank: Bank, file: Path) -> Iterator[str]:
    try:
        snapshot = bank.snapshot()
    except DamagedError as error:  # a page that opening a bank does not read
        if file.name != "bank.db" or file.name not in error.message:
            yield f"not read: {error.message}"
        return
    for digest in {adapter.digest for adapter in snapshot.by_position.values()}:
        damaged = file.is_relative_to(bank.adapter_path(digest))
        try:
            bank.verified_adapter(digest)
            if damaged:
                yield f"adapter {digest[:12]} is loaded all the same"
        except DamagedError:
            if not damaged:
                yield f"adapter {digest[:12]} is not loaded, and nothing is wrong with it"
    if file.is_relative_to(bank.path / "blobs"):
        try:
            bank.read_blob(file.name)
            yield "the blob is read all the same"
        except DamagedError:
            pass


def _rows(bank: Bank, outcome: Outcome) -> None:
    """A row that refers to a row that is not there."""
    row = sealed("adapter_context", {"adapter": 1, "ordinal": 7, "member": 99})
    try:
        with bank.catalog.write() as transaction:
            transaction.insert("adapter_context", row)
            outcome.find("uncaught", "a row that refers to nothing was written")
            raise RowRefused  # so that it does not stay
    except RowRefused:
        pass
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as behind:
        names = ", ".join(row)
        behind.execute(f"INSERT INTO adapter_context ({names}) VALUES (?, ?, ?, ?)", tuple(row.values()))
    if not bank.verify(full=False):
        outcome.find("damaged", "a row that refers to nothing is not found")
    outcome.tries += 2
