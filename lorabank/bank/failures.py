"""From what the operating system and SQLite report to errors that a user can act on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lorabank.core.commands import REPAIR, Command
from lorabank.core.errors import BusyError, DamagedError, ExistsError, LorabankError, StorageError
from lorabank.core.machine.exhaustion import hidden_os_error, space_hint

if TYPE_CHECKING:
    from lorabank.bank.objects.layout import Layout
    from lorabank.core.records import OperationRecord

_UNSOUND = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA", "SQLITE_TOOBIG")


@contextmanager
def reported(path: Path, *, unchanged: str | None = None) -> Iterator[None]:
    """Turn database and file errors inside the block into errors of lorabank.

    Args:
        path: The bank or file that is named in the message.
        unchanged: What stayed as it was, passed on to every error that does not say it itself.

    Raises:
        BusyError: The database is locked by another process.
        StorageError: No space, no permission, a folder that is gone, or an input/output error.
        DamagedError: SQLite finds the database malformed.
    """
    try:
        yield
    except LorabankError as error:
        error.unchanged = error.unchanged or unchanged
        raise
    except Exception as error:
        refused = error if isinstance(error, OSError) else hidden_os_error(error)
        if refused is not None:
            message = f"{refused.filename or path}: {refused.strerror}"
            raise StorageError(message, hint=space_hint(refused), unchanged=unchanged) from error
        known = database_error(error, path, unchanged)
        if known is None:
            raise
        raise known from error


def malformed(error: Exception) -> bool:
    """Whether SQLite finds the file itself damaged, not what a statement asks of it."""
    name = getattr(getattr(error, "orig", error), "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def database_error(error: Exception, path: Path, unchanged: str | None) -> LorabankError | None:
    """What to report for SQLite's error, also when SQLAlchemy wraps it; None for what only a bug can cause."""
    cause = getattr(error, "orig", error)
    if isinstance(cause, UnicodeDecodeError):  # sqlite3 cannot even give SQLite's message about a damaged schema
        return DamagedError(f"{path}: text that is not UTF-8", unchanged=unchanged)
    if not isinstance(cause, sqlite3.Error):
        return None
    name = getattr(cause, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BusyError(f"{path}: another process is writing", hint="try again in a moment", unchanged=unchanged)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return StorageError(f"{path}: {cause}", commands=[Command("doctor")], unchanged=unchanged)
    if name == "SQLITE_INTERRUPT":  # by the limit that each connection has
        message = f"{path}: reading takes more steps than a database of this size can need"
        return DamagedError(message, unchanged=unchanged)
    unread = ("no such", "foreign key mismatch", "unsupported file format")  # a flipped bit in schema or header
    missing = name == "SQLITE_ERROR" and any(words in str(cause) for words in unread)
    undecodable = not name and "decode" in str(cause)  # sqlite3's own message for text that is not UTF-8
    if missing or undecodable or name.startswith(_UNSOUND):
        other = "not the tables of lorabank: " if "malformed database schema" in str(cause) else ""
        file = path / "bank.db" if path.is_dir() else path
        return DamagedError(f"{file}: {other}{cause}", unchanged=unchanged)
    return None


def taken(what: str, name: str, *, kind: str = "") -> ExistsError:
    """The refusal of a name that is in use; ``kind`` is the operation that wants it."""
    replaceable = kind == "compose" if what == "composition" else kind in ("add-task", "import")
    instead = "add --replace to replace it, " if replaceable else ""
    return ExistsError(
        f"the bank has a {what} {name!r} already",
        hint=f"{instead}choose another name, or remove the {what}",
        commands=[Command("remove", name)],
        unchanged="the bank was not changed",
    )


def busy(layout: Layout, operation: OperationRecord) -> BusyError:
    """The refusal while another process works on the bank, with what ends it when the process is dead."""
    from lorabank.bank.locks import LEASE, host_name

    hint, commands = "wait for it to end; doctor shows it", [Command("doctor")]
    if operation.host != host_name():
        hint = (
            f"wait for it to end. It was last seen alive at {operation.seen_at[:19]}Z; "
            f"{LEASE.total_seconds() / 60:.0f} minutes after that it counts as dead and can be dropped"
        )
        commands = [REPAIR]
    process = f"process {operation.pid} on {operation.host}"
    return BusyError(
        f"bank {layout.root}: {process} is doing {operation.kind} {operation.name!r}",
        hint=hint,
        commands=commands,
        unchanged="the bank was not changed",
    )
