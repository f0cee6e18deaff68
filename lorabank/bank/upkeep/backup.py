"""Copies of a bank: of its database into ``backups/``, of all of it into another folder, and the way back.

A copy of the whole bank is itself a bank. Files come first and the database last, as one SQLite transaction, so a copy
that is cut off is as it was before, and the next call completes it. What is there already is read and hashed, and
mended when it is damaged. All this is about a bank whose rows and content lie in its folder.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lorabank.bank.catalog.connections import connect_to_copy, connect_to_write
from lorabank.bank.catalog.judging import check_length, judge_database
from lorabank.bank.catalog.rows import in_order
from lorabank.bank.catalog.sqlite import SqliteView
from lorabank.bank.failures import database_error, reported
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.layout import ENTRIES, Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.objects.store import adapter_problems, blob_problems, check_space
from lorabank.bank.objects.sync import sync_folder
from lorabank.bank.upkeep.copies import next_copy, rotate
from lorabank.bank.upkeep.copy_in import Brought, bring
from lorabank.bank.upkeep.referenced import changed_rows, live_files
from lorabank.core.commands import VERIFY, Command
from lorabank.core.errors import ConfigError, DamagedError, ExistsError, IncompatibleError, LorabankError, StorageError


class BackupResult(NamedTuple):
    """What was written.

    Attributes:
        path: The database file, or the folder of the copy.
        files: Adapters and blobs that were copied; those that were there already do not count.
        tasks: Tasks in the copy.
        mended: What was damaged in the copy and is whole again, one line each.
    """

    path: str
    files: int
    tasks: int
    mended: tuple[str, ...] = ()


def back_up_database(layout: Layout) -> BackupResult:
    """A checked copy of the database in ``backups/``; see ``lorabank.api.backup``."""
    read_manifest(layout)
    with bank_lock(layout.lock, exclusive=False), reported(layout.root, unchanged="the bank was not changed"):
        path = back_up(layout)
        with closing(connect_to_copy(path)) as copy:
            return BackupResult(str(path), 0, len(task_names(SqliteView(copy))))


def back_up(layout: Layout, *, spare: Path | None = None) -> Path:
    """Copy the database to ``backups/`` and let the oldest copies go; the caller holds the lock.

    Args:
        layout: The bank.
        spare: A copy that stays, however old it is.

    Raises:
        DamagedError: The database is not sound; the older copies stay.
        StorageError: What is on the disk is not what was written; the older copies stay.
    """
    layout.make_folders()
    with draft_of(layout, layout.database) as draft:
        with closing(connect_to_copy(draft)) as copy:
            revision = SqliteView(copy).revision
        draft.chmod(0o400)
        with next_copy(layout, revision) as target:
            os.rename(draft, target)
            sync_folder(layout.backups)
            _read_again(target)
            rotate(layout, keep=[target] if spare is None else [target, spare])
    return target


def _read_again(target: Path) -> None:
    """Check a copy once more, under its name, before an older one goes for it.

    Raises:
        StorageError: It is not what was checked before.
    """
    try:
        with closing(connect_to_copy(target)) as copy:
            check_sound(copy, target)
    except (DamagedError, sqlite3.Error) as error:
        target.unlink(missing_ok=True)
        raise StorageError(
            f"{target}: the bytes read back from the disk differ from those written",
            hint="check the disk, and keep the bank on another one until then",
            unchanged="the bank was not changed",
        ) from error


def copy_bank(source: Layout, folder: Path) -> BackupResult:
    """Make a copy of a whole bank, or bring one up to date; see ``lorabank.api.backup``."""
    manifest, target = read_manifest(source), Layout(folder)
    _check_folder(source, folder)
    with (
        bank_lock(source.lock, exclusive=False),  # no gc while it is copied
        reported(folder, unchanged="the bank was not changed"),
        _receiving(target, manifest["id"]),
        draft_of(target, source.database) as draft,
    ):
        with closing(connect_to_write(draft)) as copy:
            copy.execute("DELETE FROM operations")  # their work is not copied
            view = SqliteView(copy)
            mended = _refuse_diverged(target, view)
            live, tasks = live_files(view), task_names(view)
        brought = bring(target, live, source.root)
        if brought.lost:
            raise not_whole(source, brought, unchanged="the database of the copy", commands=[VERIFY])
        install(draft, target)
        mended += put_manifest(target, source)
    return BackupResult(str(folder), brought.copied, len(tasks), (*brought.mended, *mended))


@contextmanager
def files_of_copy(source: Layout) -> Iterator[dict[str, Path]]:
    """The files of which a copy of a whole bank consists, each checked: path in the bank to the file.

    Nothing is copied but the database; no gc takes a file away before the block ends.

    Raises:
        DamagedError: A row or a file of the bank is damaged.
    """
    read_manifest(source)
    with (
        bank_lock(source.lock, exclusive=False),
        reported(source.root, unchanged="the bank was not changed"),
        draft_of(source, source.database) as draft,
    ):
        with closing(connect_to_write(draft)) as copy:
            copy.execute("DELETE FROM operations")
            live = live_files(SqliteView(copy))
        lost, found = list[str](), {"bank.json": source.manifest, "bank.db": draft}
        for digest, (task, files) in live.adapters.items():
            folder = source.adapter(digest)
            lost += [f"adapter {digest[:12]} of task {task}: {one}" for one in adapter_problems(folder, files)]
            found |= {f"adapters/{digest}/{file.name}": folder / file.name for file in files}
        for digest, file in live.blobs.items():
            path = source.blob(digest)
            lost += [f"{live.owners[digest]}: {one}" for one in blob_problems(path, file)]
            found[f"blobs/{digest[:2]}/{digest}"] = path
        if lost:
            raise not_whole(source, Brought(0, (), tuple(lost)), unchanged="the bank", commands=[VERIFY])
        yield found


def not_whole(
    source: Layout, brought: Brought, *, unchanged: str, commands: Sequence[Command], hint: str | None = None
) -> DamagedError:
    """The refusal of what cannot be copied whole."""
    more = f", and {len(brought.lost) - 1} more" if brought.lost[1:] else ""
    message, kept = f"{source.root}: {brought.lost[0]}{more}", f"{unchanged} was not changed"
    return DamagedError(message, hint=hint, commands=commands, unchanged=kept)


@contextmanager
def draft_of(layout: Layout, database: Path) -> Iterator[Path]:
    """A checked, durable copy of a database in the bank's ``staging/``, to be renamed or thrown away.

    Raises:
        DamagedError: The database is not sound.
    """
    check_space(layout.root, judge_database(database))
    folder = layout.staging(os.urandom(16).hex())
    folder.mkdir(mode=0o700)
    draft = folder / "bank.db"
    try:
        check_length(draft)
        if os.access(database.parent, os.W_OK):
            with closing(connect_to_write(database)) as connection:
                connection.execute("VACUUM INTO ?", (str(draft),))
        else:  # SQLite cannot open a WAL database there, and nobody can be writing it
            shutil.copyfile(database, draft)
        draft.chmod(0o600)
        descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with closing(connect_to_copy(draft)) as copy:
            check_sound(copy, database)
        yield draft
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_sound(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database with damaged pages or rows: SQLite's own check misses most flipped bits, row digests none.

    Raises:
        DamagedError: Saying what was found.
    """
    verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        raise DamagedError(f"{path}: {verdict}", unchanged="the bank was not changed")
    for table, key in changed_rows(SqliteView(connection)):
        message = f"{path}: row {key!r} of {table} is damaged"
        raise DamagedError(message, unchanged="the bank was not changed")


def task_names(view: SqliteView) -> list[str]:
    """The tasks that are in use, in their order."""
    return [row["name"] for row in in_order(view.rows("tasks"), "position") if row["state"] != "removed"]


def install(draft: Path, layout: Layout) -> None:
    """Make the content of ``bank.db`` that of the draft, in one transaction: readers see the one or the other.

    Raises:
        sqlite3.DatabaseError: The present file is not a database any more.
    """
    if not layout.database.exists():
        for leftover in ("bank.db-wal", "bank.db-shm"):  # the log of a file that is gone belongs to nothing
            (layout.root / leftover).unlink(missing_ok=True)
        os.rename(draft, layout.database)
        sync_folder(layout.root)
        return
    with (
        closing(connect_to_copy(draft)) as source,
        closing(connect_to_write(layout.database, foreign_keys=False)) as target,
    ):
        source.backup(target)


@contextmanager
def _receiving(target: Layout, identifier: str) -> Iterator[None]:
    """The folder of a copy, made when missing and locked; another bank's is refused."""
    target.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with bank_lock(target.lock, exclusive=True):
        if target.manifest.exists() and (found := _identifier(target)) != identifier:
            raise ExistsError(
                f"{target.root} is another bank ({found[:12]})",
                hint="name another folder",
                unchanged="nothing was changed",
            )
        target.make_folders()
        yield


def _identifier(target: Layout) -> str:
    """Whose copy it is, by the database when ``bank.json`` does not say."""
    try:
        return str(read_manifest(target)["id"])
    except DamagedError:
        with suppress(sqlite3.Error), closing(connect_to_write(target.database)) as connection:
            return str(connection.execute("SELECT bank_id FROM bank").fetchone()[0])
        raise


def _check_folder(source: Layout, folder: Path) -> None:
    unchanged = "nothing was changed"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExistsError(f"{folder} is not a folder", hint="name another folder", unchanged=unchanged)
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in ENTRIES) if folder.exists() else []
    if others:
        raise ExistsError(
            f"{folder} is not empty and not a copy of a bank: it holds {others[0][:80]!r}",
            hint="name another folder",
            unchanged=unchanged,
        )
    if folder.resolve().is_relative_to(source.root.resolve()):
        raise ConfigError(f"{folder} is inside the bank", hint="name a folder elsewhere", unchanged=unchanged)


def _refuse_diverged(target: Layout, copy: SqliteView) -> list[str]:
    """A copy that went on by itself is not overwritten: rows are never deleted, so what it holds must be here too.

    Returns:
        Its damaged rows, one line each: they say nothing, and are overwritten.
    """
    if not target.database.exists():
        return []
    here = {(row["id"], row["digest"]) for row in copy.rows("adapters")}
    try:
        with closing(connect_to_write(target.database)) as other:
            view = SqliteView(other)
            damaged = changed_rows(view)
            sound = (row for row in view.rows("adapters") if ("adapters", str(row["id"])) not in damaged)
            there = {(row["id"], row["digest"]) for row in sound}
    except sqlite3.DatabaseError as error:
        known = database_error(error, target.database, "the copy was not changed")
        if not isinstance(known, DamagedError):
            raise
        known.hint = f"name another folder, or move {target.database} away and run the same command again"
        known.commands = ()
        raise known from error
    if not there <= here:
        raise IncompatibleError(
            f"{target.root} holds {len(there - here)} adapters that the bank does not know: it was changed separately",
            hint="name another folder",
            unchanged="nothing was changed",
        )
    return [f"bank.db: row {key!r} of {table} was damaged" for table, key in damaged]


def put_manifest(target: Layout, source: Layout) -> list[str]:
    """Give a copy the ``bank.json`` of what it is a copy of; last: without it, it was never finished.

    Returns:
        One line when another was there.
    """
    from lorabank.bank.objects.manifest import write_manifest

    there = os.path.lexists(target.manifest)
    with suppress(LorabankError):
        if read_manifest(target) == read_manifest(source):
            return []
    write_manifest(target, source.manifest.read_bytes())
    return ["bank.json was damaged"] if there else []
