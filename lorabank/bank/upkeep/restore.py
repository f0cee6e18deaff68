"""Putting a copy of a bank back into its folder: checked before anything is changed, and what was there is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lorabank.bank.catalog.connections import connect_to_copy, connect_to_write
from lorabank.bank.catalog.definitions import REVISIONS
from lorabank.bank.catalog.reading import read_operations
from lorabank.bank.catalog.sqlite import SqliteView
from lorabank.bank.failures import busy, database_error, reported
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.layout import DATABASE_FILES, ENTRIES, Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.objects.store import adapter_problems, blob_problems
from lorabank.bank.objects.sync import sync_folder
from lorabank.bank.upkeep.backup import back_up, draft_of, install, not_whole, put_manifest, task_names
from lorabank.bank.upkeep.copies import copies
from lorabank.bank.upkeep.copy_in import bring
from lorabank.bank.upkeep.referenced import LiveFiles, live_files
from lorabank.core.commands import VERIFY, Command
from lorabank.core.errors import DamagedError, ExistsError, IncompatibleError, LorabankError, NotFoundError

UNCHANGED = "the bank was not changed"


class RestoreResult(NamedTuple):
    """What a restore did, or would do.

    Attributes:
        backup: The copy that was put back.
        kept: Where the database that was there before lies now; None when there was none.
        back: Tasks that the bank did not have before.
        gone: Tasks that it does not have any more.
        missing: Files that the bank now lacks (only with ``incomplete``).
        mended: Files of the bank that were damaged and have their bytes back, from a copy of the whole bank.
        older_schema: The copy's schema revision where an upgrade must follow before the bank can be used; else None.
    """

    backup: str
    kept: str | None
    back: tuple[str, ...]
    gone: tuple[str, ...]
    missing: tuple[str, ...]
    mended: tuple[str, ...] = ()
    older_schema: str | None = None


def restore(layout: Layout, backup: Path, *, incomplete: bool, dry_run: bool) -> RestoreResult:
    """Put a copy of the database or of the whole bank back; see ``lorabank.api.restore``."""
    backup = _found(layout, backup)
    origin = Layout(backup) if backup.is_dir() else None
    identifier = read_manifest(origin or layout)["id"]
    if origin is not None:
        _check_place(layout, identifier)
    with ExitStack() as stack:
        stack.enter_context(reported(layout.root, unchanged=UNCHANGED))
        if not layout.root.exists():
            if dry_run:
                with _connected(origin.database if origin else backup) as copy:
                    if origin:
                        _bring(layout, live_files(copy), origin, dry_run)
                    tasks = tuple(task_names(copy))
                    return RestoreResult(str(backup), None, tasks, (), (), older_schema=_older(copy))
            layout.root.mkdir(mode=0o700, parents=True)
        stack.enter_context(bank_lock(layout.lock, exclusive=True))
        layout.make_folders()
        before = _present(layout)
        draft = stack.enter_context(draft_of(layout, origin.database if origin else backup))
        with closing(connect_to_copy(draft)) as connection:
            copy = SqliteView(connection)
            _check_copy(copy, backup, identifier)
            live, after, older = live_files(copy), task_names(copy), _older(copy)
        missing = () if origin else _missing(layout, live)
        if missing and not incomplete:
            raise DamagedError(
                f"{backup}: {len(missing)} of its files are not in the bank any more, the first: {missing[0]}",
                hint="name an older or newer backup, or a copy of the whole bank; or restore it without them",
                commands=[Command("restore", str(backup), "--incomplete")],
                unchanged=UNCHANGED,
            )
        mended: tuple[str, ...] = ()
        if origin is not None:
            mended = _bring(layout, live, origin, dry_run)
        kept = None
        if not dry_run:
            kept = _replace(layout, draft, backup)
            if origin is not None:
                mended = (*mended, *put_manifest(layout, origin))
    back, gone = (tuple(n for n in one if n not in other) for one, other in ((after, before), (before, after)))
    return RestoreResult(str(backup), kept, back, gone, missing, mended, older)


def _found(layout: Layout, backup: Path) -> Path:
    """The copy itself: a path, or the name of one in the bank's ``backups/``; a link is followed when it was named."""
    if backup.is_symlink() and backup.is_file():
        return backup.resolve()
    for path in (backup, layout.backups / backup.name):
        if path.is_file() or (path / "bank.json").is_file():
            return path
    names = [path.name for path in copies(layout)[-3:]]
    raise NotFoundError(
        f"no backup {str(backup)[:200]!r}" + (f". The bank has: {', '.join(names)}" if names else ""),
        commands=[Command("restore", names[-1]) if names else Command("backup")],
        unchanged=UNCHANGED,
    )


def _check_place(layout: Layout, identifier: str) -> None:
    """A copy of a whole bank goes back into its own bank, or where nothing else lies."""
    if layout.manifest.exists():
        with suppress(DamagedError):
            if (found := read_manifest(layout)["id"]) != identifier:
                raise ExistsError(
                    f"{layout.root} is another bank ({found[:12]})",
                    hint="name another folder with --bank",
                    unchanged=UNCHANGED,
                )
    elif layout.root.exists() and any(entry.name not in ENTRIES for entry in layout.root.iterdir()):
        raise ExistsError(
            f"{layout.root} is not empty and not a bank",
            hint="name another folder with --bank",
            unchanged="nothing was changed",
        )


def _check_copy(copy: SqliteView, backup: Path, identifier: str) -> None:
    """That it is a database of this bank; its schema, pages and rows were checked when it was read."""
    row = copy.last("bank")
    if row is None:
        raise DamagedError(f"{backup}: not a database of lorabank", hint="name another backup", unchanged=UNCHANGED)
    if row["bank_id"] != identifier:
        message = f"{backup} is a copy of another bank ({row['bank_id'][:12]})"
        raise IncompatibleError(message, hint="name a backup of this bank", unchanged=UNCHANGED)


def _older(copy: SqliteView) -> str | None:
    return copy.revision if copy.revision != REVISIONS[-1] else None


def _bring(layout: Layout, live: LiveFiles, origin: Layout, dry_run: bool) -> tuple[str, ...]:
    """Give the bank the files that it lacks, or holds damaged; returns what was mended."""
    brought = bring(layout, live, origin.root, dry_run=dry_run)
    if brought.lost:
        hint, damaged = "name another backup; this lists what is damaged", Command("-b", str(origin.root), *VERIFY)
        raise not_whole(origin, brought, hint=hint, commands=[damaged], unchanged="the database of the bank")
    return brought.mended


def _missing(layout: Layout, live: LiveFiles) -> tuple[str, ...]:
    found = [
        f"adapter {digest[:12]} of task {task}"
        for digest, (task, files) in live.adapters.items()
        if adapter_problems(layout.adapter(digest), files, full=False)
    ]
    blobs = live.blobs.items()
    found += [f"blob {digest[:12]}" for digest, file in blobs if blob_problems(layout.blob(digest), file, full=False)]
    return tuple(found)


def _present(layout: Layout) -> list[str]:
    """The tasks of the bank as it is, none when it cannot be read; refuses beside a live operation."""
    if not layout.database.exists():
        return []
    try:
        with _connected(layout.database) as view:
            for operation in read_operations(view):
                if operation.alive:
                    raise busy(layout, operation)
            return task_names(view)
    except Exception as error:
        if not _is_damage(error, layout):
            raise
        return []


def _is_damage(error: Exception, layout: Layout) -> bool:
    """Whether the database cannot be read, as opposed to a full disk or a lock."""
    known = error if isinstance(error, LorabankError) else database_error(error, layout.root, None)
    return isinstance(known, DamagedError)


@contextmanager
def _connected(database: Path) -> Iterator[SqliteView]:
    with closing(connect_to_write(database)) as connection:
        yield SqliteView(connection)


def _replace(layout: Layout, draft: Path, backup: Path) -> str | None:
    """Keep the present database aside and put the draft in its place."""
    if not layout.database.exists():
        install(draft, layout)
        return None
    try:
        kept = back_up(layout, spare=backup)
        install(draft, layout)
    except Exception as error:
        if not _is_damage(error, layout):
            raise
        kept = _set_aside(layout)
        install(draft, layout)
    return str(kept)


def _set_aside(layout: Layout) -> Path:
    """Move a database that cannot be read out of the way, with its log; nothing of it is deleted."""
    folder = layout.quarantine() / f"{os.urandom(8).hex()}-database"
    folder.mkdir(mode=0o700)
    for name in reversed(DATABASE_FILES):  # the log first: without it the rest is still a database
        with suppress(FileNotFoundError):
            shutil.move(layout.root / name, folder / name)
    sync_folder(folder)
    sync_folder(layout.root)
    return folder
