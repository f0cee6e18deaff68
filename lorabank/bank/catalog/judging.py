"""What lies where a database should be, judged before SQLite sees it.

SQLite trusts the files beside a database: it waits at a pipe, writes through links, and deletes the file that a
rollback journal names as its super-journal. lorabank changes one database at a time, so its own journals name none.

A file can be exchanged between this look and SQLite's: against another process that writes into the folder at the very
moment there is no protection, as SECURITY.md says.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lorabank.bank.objects.open_regular import open_plain
from lorabank.core.commands import VERIFY, Command
from lorabank.core.errors import ConfigError, DamagedError

LONGEST = 504
"""Bytes of a database's path: SQLite opens 512, of which it keeps eight for ``-journal``."""

_MAGIC = bytes.fromhex("d9d505f920a163d7")  # at both ends of a journal: https://sqlite.org/fileformat2.html
_HEADER = 28


def beside(database: Path) -> tuple[Path, Path, Path]:
    """The rollback journal, the log and the shared memory that belong to a database."""
    journal, log, index = (database.with_name(f"{database.name}-{end}") for end in ("journal", "wal", "shm"))
    return journal, log, index


def judge_database(database: Path) -> int:
    """Refuse a database that SQLite must not open, and return how many bytes it and its log have.

    Raises:
        ConfigError: Its path is longer than SQLite opens.
        DamagedError: The database or a file beside it is missing, a link, no regular file, linked to from elsewhere,
            another user's, or a journal that was not left by lorabank.
    """
    check_length(database)
    journal, log, _ = files = beside(database)
    status = _judged(database)
    if status is None:
        raise DamagedError(f"{database} is missing", commands=[Command("restore", "BACKUP")])
    found = {path: own for path in files if (own := _judged(path, status.st_uid)) is not None}
    if journal in found and (problem := _foreign(database, journal)):
        raise DamagedError(
            f"{journal}: {problem}",
            hint=f"move it out of {database.parent} if you do not know it, then check the bank",
            commands=[Command("verify")],
            unchanged="nothing was changed",
        )
    return status.st_size + (found[log].st_size if log in found else 0)


def check_length(database: Path) -> None:
    """Refuse a path that SQLite would not open.

    Raises:
        ConfigError: With the number of bytes.
    """
    length = len(os.fsencode(os.path.realpath(database)))
    if length > LONGEST:
        raise ConfigError(
            f"the path of {database.name} has {length} bytes, and SQLite opens at most {LONGEST}: {database}",
            hint="choose a shorter path with --bank",
            unchanged="nothing was changed",
        )


def has_content(path: Path) -> bool:
    """Whether there is such a file, and it is not empty."""
    try:
        return os.lstat(path).st_size > 0
    except FileNotFoundError:
        return False


def _judged(path: Path, owner: int | None = None) -> os.stat_result | None:
    """The status of a file that SQLite may have, None when there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    problem = None
    if stat.S_ISLNK(status.st_mode):
        problem = "a link, which is not followed"
    elif not stat.S_ISREG(status.st_mode):
        problem = "not a regular file"
    elif status.st_nlink > 1:
        problem = f"it has {status.st_nlink} names (hard links), and a change would reach all of them"
    elif owner is not None and status.st_uid not in (owner, os.geteuid(), 0):
        problem = f"it belongs to the user {status.st_uid}, the database to {owner}"
    if problem:
        raise DamagedError(
            f"{path}: {problem}",
            hint="check the bank, or use a copy of the folder: cp -r",
            commands=[VERIFY],
            unchanged="nothing was changed",
        )
    return status


def _foreign(database: Path, journal: Path) -> str | None:
    """Why a rollback journal is not of lorabank's making, None when it may be.

    A crash on a network file system leaves one, and SQLite must undo with it what was half done. A database in WAL
    mode has one only for the moment in which it changes into that mode or out of it: then it holds page 1 alone.
    """
    try:
        with open_plain(journal) as file:
            start, size = file.read(_HEADER), file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_MAGIC)))
            if size > _HEADER and file.read() == _MAGIC:
                return "it names another file, which SQLite would delete"
            if len(start) < _HEADER or not start.startswith(_MAGIC):
                return None  # SQLite takes nothing from it
            sector, page = int.from_bytes(start[20:24]), int.from_bytes(start[24:28])
            file.seek(sector)
            first = file.read(4)
        with open_plain(database) as file:
            modes = file.read(20)[18:]
    except FileNotFoundError:  # its transaction ended just now
        return None
    alone = size <= sector + page + 8 and first in (b"", b"\0\0\0\1")
    if modes == b"\2\2" and not alone:
        return "it is from a transaction that lorabank did not make, since the database is in WAL mode"
    return None
