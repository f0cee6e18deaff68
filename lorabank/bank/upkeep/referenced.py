"""Which stored files the bank needs: those that a row in use refers to.

Rows of removed tasks and compositions are lineage and need no files, except that an adapter stays for as long as a
later adapter, which was trained on top of it, is in use; its objects go with its task. A task that was set aside as
damaged (state ``failed``) keeps what is left of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from lorabank.bank.catalog.columns import TABLES, sound
from lorabank.bank.catalog.rows import is_sealed
from lorabank.bank.objects.base import StoredFile
from lorabank.core.errors import DataError

_USED_BLOBS = {
    "tasks": """SELECT statistics, 'the statistics of task ' || name FROM tasks
    WHERE {task} AND statistics IS NOT NULL""",
    "datasets": """SELECT blob, 'the ' || split || ' rows of task ' || name FROM datasets
    JOIN tasks ON tasks.position = datasets.task WHERE {task} AND blob IS NOT NULL""",
    "events": """SELECT row_digests, 'the digests of the ' || split || ' rows of task ' || name FROM datasets
    JOIN tasks ON tasks.position = datasets.task WHERE {task} AND row_digests IS NOT NULL""",
    "composition_objects": """SELECT blob, 'the ' || role || ' of composition ' || name FROM composition_objects
    JOIN compositions ON compositions.id = composition WHERE {composition}""",
    "adapter_objects": """SELECT blob, 'the ' || role || ' of task ' || name FROM adapter_objects
    JOIN tasks ON tasks.position = adapter WHERE {task}""",
}
"""Blobs in use and whose each is, by a table of the schema that knows them: a backup of an older one has fewer."""

_USED_ADAPTERS = """
SELECT position FROM tasks WHERE {task}
UNION SELECT member FROM adapter_context JOIN tasks ON tasks.position = adapter_context.adapter WHERE {task}
"""


@dataclass(frozen=True)
class LiveFiles:
    """What must be on the disk.

    Attributes:
        adapters: Adapter digest to (name of its task, its files).
        blobs: Blob digest to its hash and size.
        owners: Blob digest to what it is; one that several have is the first one's.
    """

    adapters: dict[str, tuple[str, list[StoredFile]]]
    blobs: dict[str, StoredFile]
    owners: dict[str, str]


def live_files(
    connection: sqlite3.Connection, *, tasks: Iterable[int] = (), compositions: Iterable[int] = ()
) -> LiveFiles:
    """Read what the rows in use refer to.

    Args:
        connection: The database.
        tasks: Positions of removed tasks that count as in use.
        compositions: The same of compositions.
    """
    used = {
        "task": f"(tasks.state IN ('ready', 'failed') OR tasks.position IN ({_numbers(tasks)}))",
        "composition": f"(compositions.state = 'ready' OR compositions.id IN ({_numbers(compositions)}))",
    }
    stored = [sound("blobs", row) for row in connection.execute("SELECT * FROM blobs")]
    sizes = {blob["digest"]: blob["bytes"] for blob in stored}
    queries = [query.format(**used) for table, query in _USED_BLOBS.items() if table in _tables(connection)]
    blobs_used = connection.execute(f"{' UNION '.join(queries)} ORDER BY 1, 2 DESC").fetchall()
    owners = {row[0]: row[1] for row in blobs_used}
    blobs = {digest: StoredFile(digest, digest, sizes.get(digest, -1)) for digest in owners}
    adapters: dict[str, tuple[str, list[StoredFile]]] = {}
    for position, digest, task in connection.execute(
        "SELECT id, digest, name FROM adapters JOIN tasks ON tasks.position = adapters.id "
        f"WHERE id IN ({_USED_ADAPTERS.format(**used)}) ORDER BY id DESC"
    ).fetchall():
        files = connection.execute(
            "SELECT name, sha256, bytes FROM adapter_files WHERE adapter = ? ORDER BY name", (position,)
        )
        adapters[digest] = (task, [StoredFile(**sound("adapter_files", row)) for row in files])
    return LiveFiles(adapters, blobs, owners)


def _numbers(rows: Iterable[int]) -> str:
    return ",".join(str(int(row)) for row in rows)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def changed_rows(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Rows whose immutable columns no longer match their digest, as (table, key); an older schema has fewer tables."""
    found = []
    tables = _tables(connection)
    for table, described in ((table, described) for table, described in TABLES.items() if table in tables):
        first = next(iter(described.columns))
        for row in connection.execute(f"SELECT * FROM {table}"):
            if not _is_unchanged(table, row):
                found.append((table, str(row[first])[:80]))
    return found


def _is_unchanged(table: str, row: sqlite3.Row) -> bool:
    try:
        return is_sealed(table, dict(row))
    except (DataError, LookupError):  # a flipped bit turned text into bytes, or renamed a column in the schema
        return False


def recorded_files(connection: sqlite3.Connection, digest: str) -> list[StoredFile]:
    """The files of an adapter as recorded, also of a removed task's; empty when the bank never had it."""
    rows = connection.execute(
        "SELECT name, sha256, bytes FROM adapter_files "
        "WHERE adapter = (SELECT min(id) FROM adapters WHERE digest = ?) ORDER BY name",
        (digest,),
    )
    return [StoredFile(**sound("adapter_files", row)) for row in rows]
