"""Which stored files the bank needs: those that a row in use refers to.

Rows of removed tasks and compositions are lineage and need no files, except that an adapter stays for as long as a
later adapter, which was trained on top of it, is in use; its objects go with its task.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from lorabank.bank.rows import IMMUTABLE, row_digest
from lorabank.bank.store import StoredFile
from lorabank.core.errors import DataError

_USED_BLOBS = """
SELECT statistics FROM tasks WHERE state = 'ready' AND statistics IS NOT NULL
UNION SELECT blob FROM datasets JOIN tasks ON tasks.position = datasets.task
    WHERE tasks.state = 'ready' AND blob IS NOT NULL
UNION SELECT blob FROM composition_objects JOIN compositions ON compositions.id = composition
    WHERE compositions.state = 'ready'
UNION SELECT blob FROM adapter_objects JOIN tasks ON tasks.position = adapter
    WHERE tasks.state = 'ready'
"""
_USED_ADAPTERS = """
SELECT position FROM tasks WHERE state = 'ready'
UNION SELECT member FROM adapter_context JOIN tasks ON tasks.position = adapter_context.adapter
    WHERE tasks.state = 'ready'
"""


@dataclass(frozen=True)
class LiveFiles:
    """What must be on the disk.

    Attributes:
        adapters: Adapter digest to (name of its task, its files).
        blobs: Blob digest to its hash and size.
    """

    adapters: dict[str, tuple[str, list[StoredFile]]]
    blobs: dict[str, StoredFile]


def live_files(connection: sqlite3.Connection) -> LiveFiles:
    """Read what the rows in use refer to."""
    sizes = dict(connection.execute("SELECT digest, bytes FROM blobs").fetchall())
    used = [row[0] for row in connection.execute(_USED_BLOBS)]
    blobs = {digest: StoredFile(digest, digest, sizes.get(digest, -1)) for digest in used}
    adapters: dict[str, tuple[str, list[StoredFile]]] = {}
    for position, digest, task in connection.execute(
        "SELECT id, digest, name FROM adapters JOIN tasks ON tasks.position = adapters.id "
        f"WHERE id IN ({_USED_ADAPTERS}) ORDER BY id DESC"
    ).fetchall():
        files = connection.execute(
            "SELECT name, sha256, bytes FROM adapter_files WHERE adapter = ? ORDER BY name", (position,)
        )
        adapters[digest] = (task, [StoredFile(*row) for row in files])
    return LiveFiles(adapters, blobs)


def changed_rows(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Rows whose immutable columns no longer match their digest, as (table, key)."""
    found = []
    for table, columns in IMMUTABLE.items():
        for row in connection.execute(f"SELECT * FROM {table}"):
            if not _is_unchanged(table, row):
                found.append((table, str(row[columns[0]])[:80]))
    return found


def _is_unchanged(table: str, row: sqlite3.Row) -> bool:
    try:
        return row_digest(table, dict(row)) == str(row["row_digest"])
    except (DataError, LookupError):  # a flipped bit turned text into bytes, or renamed a column in the schema
        return False


def recorded_files(connection: sqlite3.Connection, digest: str) -> list[StoredFile]:
    """The files of an adapter as recorded, also of a removed task's; empty when the bank never had it."""
    rows = connection.execute(
        "SELECT name, sha256, bytes FROM adapter_files "
        "WHERE adapter = (SELECT min(id) FROM adapters WHERE digest = ?) ORDER BY name",
        (digest,),
    )
    return [StoredFile(*row) for row in rows]
