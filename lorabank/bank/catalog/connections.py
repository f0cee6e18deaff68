"""Connections to a database that somebody else may have prepared: every one that lorabank opens is made here.

The files are judged before SQLite sees them, the schema before a statement of lorabank reads a table, and no
connection can be kept busy for ever.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lorabank.bank.catalog.definitions import schema_revision
from lorabank.bank.catalog.judging import beside, has_content, judge_database
from lorabank.bank.objects.filesystem import network_filesystem

BUSY_SECONDS = 30.0
"""How long a connection waits for another process's lock."""

_HARDENED = ("PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON", "PRAGMA mmap_size = 0")
_READING = (*_HARDENED, "PRAGMA query_only = ON", "BEGIN")

_STEPS, _STEPS_PER_BYTE, _STRIDE = 2_000_000, 8, 10_000
_LONGEST_TEXT = 1 << 20


def connect_to_read(database: Path) -> sqlite3.Connection:
    """A connection that cannot write, in a transaction.

    The mode is ``rw`` because SQLite removes the ``-wal`` and ``-shm`` files that reading makes only then; on a full
    disk or a read-only medium it cannot make them, and without a ``-wal`` the file alone is the whole truth.

    Raises:
        ConfigError: The path is too long for SQLite.
        DamagedError: It is not a database of lorabank, or not one that can be opened safely.
    """
    try:
        return _connected(database, "rw", _READING)
    except sqlite3.OperationalError:
        journal, log, _ = beside(database)
        if has_content(log) or has_content(journal):
            raise
        return connect_to_copy(database)


def connect_to_copy(database: Path) -> sqlite3.Connection:
    """A connection as ``connect_to_read`` to a database that nobody writes: SQLite sees no other file, and makes none.

    Raises:
        ConfigError, DamagedError: As there.
    """
    return _connected(database, "ro&immutable=1", _READING)


def connect_to_write(database: Path, *, foreign_keys: bool = True, new: bool = False) -> sqlite3.Connection:
    """A connection that never opens a transaction by itself (the driver's own rules leave DDL outside).

    Args:
        database: The file.
        foreign_keys: Whether references are enforced.
        new: Whether the caller has just made the file, so that it has no schema yet.

    Raises:
        ConfigError, DamagedError: As for ``connect_to_read``.
    """
    settings = ("PRAGMA synchronous = FULL", f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
    connection = _connected(database, "rw", (*_HARDENED, *settings), new=new)
    if connection.execute("PRAGMA foreign_keys").fetchone()[0] != int(foreign_keys):
        connection.close()
        raise sqlite3.DatabaseError("this build of SQLite cannot enforce foreign keys")
    return connection


def open_to_write(database: Path, *, foreign_keys: bool = True, new: bool = False) -> sqlite3.Connection:
    """A connection as of ``connect_to_write``, with the journal that suits the place."""
    connection = connect_to_write(database, foreign_keys=foreign_keys, new=new)
    try:
        choose_journal(connection, database)
    except Exception:
        connection.close()
        raise
    return connection


def choose_journal(connection: sqlite3.Connection, database: Path) -> None:
    """WAL on a local disk, a rollback journal on a network file system; a bank that was moved follows its place."""
    wanted = "wal" if network_filesystem(database) is None else "delete"
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        connection.execute("PRAGMA busy_timeout = 1000")
        with suppress(sqlite3.OperationalError):  # beside a reader it cannot change now: the next writer tries again
            connection.execute(f"PRAGMA journal_mode = {wanted}")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")


def _connected(database: Path, mode: str, settings: Iterable[str], *, new: bool = False) -> sqlite3.Connection:
    size = judge_database(database)
    address = f"{database.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
    try:
        _bound(connection, size)
        # SQLite reads the schema before anybody can look at it, and evaluates a computed column of ANALYZE's tables
        # then. No definition of lorabank calls a function: with this limit SQLite refuses a schema that does.
        functions = connection.setlimit(sqlite3.SQLITE_LIMIT_FUNCTION_ARG, 0)
        texts = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_TEXT)
        for setting in settings:
            connection.execute(setting)
        if not new:
            schema_revision(connection, database)
        connection.setlimit(sqlite3.SQLITE_LIMIT_FUNCTION_ARG, functions)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, texts)
    except BaseException:
        connection.close()
        raise
    return connection


def _bound(connection: sqlite3.Connection, size: int) -> None:
    """Interrupt what takes more steps in all than reading a database of this size can need.

    Steps of SQLite's machine and not seconds, which depend on the disk and on who else computes. Endless views and
    recursive queries end here, and pages that refer to each other in a circle.
    """
    left = (_STEPS + _STEPS_PER_BYTE * size) // _STRIDE

    def spend() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    connection.set_progress_handler(spend, _STRIDE)
