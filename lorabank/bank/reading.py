"""Reading a bank with the standard library's sqlite3: no SQLAlchemy, so that ``lorabank list`` answers at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lorabank.bank.failures import reported
from lorabank.bank.layout import FORMAT, Layout
from lorabank.bank.plain import open_plain
from lorabank.bank.rows import (
    CHANGING,
    IMMUTABLE,
    INDEXES,
    SCHEMA,
    adapter_record,
    base_model_record,
    composition_record,
    dataset_record,
    evaluation_record,
    operation_record,
    task_record,
)
from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import DamagedError, IncompatibleError, NotFoundError, StorageError
from lorabank.core.records import AdapterRecord, CompositionRecord, EvaluationRecord, OperationRecord

APPLICATION_ID = 0x4C6F5242
"""``LoRB``, in the header of ``bank.db``."""

REVISIONS = ("0001", "0002", "0003")
"""Schema revisions that this version knows, oldest first; the last is the head of the migrations."""


def read_manifest(layout: Layout) -> dict[str, Any]:
    """The content of ``bank.json``.

    Raises:
        NotFoundError: There is no bank.
        DamagedError: The file is missing beside a database, it is a link or no file, or it does not parse.
        StorageError: It cannot be read.
        IncompatibleError: A newer lorabank wrote it.
    """
    try:
        with open_plain(layout.manifest) as file:
            content = json.loads(file.read())
        if not isinstance(content["id"], str) or type(content["format"]) is not int:
            raise TypeError("id or format")
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(layout) from None
    except OSError as error:
        raise StorageError(f"{layout.manifest}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{layout.manifest}: not the manifest of a bank ({error})") from error
    if content["format"] > FORMAT:
        raise IncompatibleError(
            f"bank {layout.root} has format {content['format']}, this lorabank knows {FORMAT}: "
            f"it was made by lorabank {content.get('created_with', '?')!s}",
            hint="pip install --upgrade lorabank",
            unchanged="the bank was not changed",
        )
    return dict(content)


def _missing(layout: Layout) -> NotFoundError | DamagedError:
    if layout.database.exists():
        return DamagedError(f"bank {layout.root}: bank.json is missing: the bank was never finished, or lost the file")
    return NotFoundError(f"no bank at {layout.root}", hint="lorabank add-task NAME --data FILE")


@contextmanager
def reading(layout: Layout) -> Iterator[sqlite3.Connection]:
    """One read transaction on a database whose schema is checked.

    Raises:
        IncompatibleError: The schema is newer or older than this version's.
        DamagedError: It is not the database of a bank.
    """
    with reported(layout.root):
        connection = _connect(layout)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            _check_schema(connection, layout)
            yield connection
        finally:
            connection.close()


def _connect(layout: Layout) -> sqlite3.Connection:
    """A connection that cannot write.

    The mode is ``rw`` because SQLite removes the ``-wal`` and ``-shm`` files that reading makes only then; on a full
    disk or a read-only medium it cannot make them, and without a ``-wal`` the file alone is the whole truth.
    """
    if layout.database.is_symlink():
        raise DamagedError(f"bank {layout.root}: bank.db is a link, which is not followed", hint="lorabank verify")
    if not layout.database.is_file():
        raise DamagedError(f"bank {layout.root}: bank.db is missing", hint="lorabank verify")
    address = layout.database.absolute().as_uri()
    try:
        return _hardened(f"{address}?mode=rw")
    except sqlite3.OperationalError:
        log = layout.database.with_name("bank.db-wal")
        if log.exists() and log.stat().st_size:
            raise
        return _hardened(f"{address}?mode=ro&immutable=1")


def _hardened(address: str) -> sqlite3.Connection:
    """A connection with settings against a database that somebody else prepared."""
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=30)
    try:
        for setting in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except Exception:
        connection.close()
        raise
    return connection


def read_revision(connection: sqlite3.Connection) -> str | None:
    """The schema revision of a database, None before the first migration."""
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise  # a full disk is no missing revision
    return str(row[0]) if row else None


def _check_schema(connection: sqlite3.Connection, layout: Layout) -> None:
    refuse_foreign(connection, layout.database)
    revision = read_revision(connection)
    if revision == SCHEMA and (found := _other_schema(connection)):
        raise DamagedError(f"{layout.database}: not the tables of lorabank ({found[:80]!r})", hint="lorabank doctor")
    if revision == REVISIONS[-1]:
        return
    if revision in REVISIONS:
        raise IncompatibleError(
            f"bank {layout.root} has schema {revision}, this lorabank needs {REVISIONS[-1]}",
            hint="lorabank db upgrade",
            unchanged="the bank was not changed",
        )
    raise newer_schema(layout, revision)


def refuse_foreign(connection: sqlite3.Connection, database: Path) -> None:
    """Refuse a database that is not one of lorabank, or in which somebody left what would run by itself.

    Raises:
        DamagedError: Naming the trigger or view.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    foreign = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()
    if application != APPLICATION_ID or foreign:
        raise DamagedError(
            f"{database}: not a database of lorabank"
            + (f" (it holds the trigger or view {foreign[0][:80]!r})" if foreign else ""),
            unchanged="the bank was not changed",
        )


def _other_schema(connection: sqlite3.Connection) -> str | None:
    """A table, column or index that is not in the schema, or lacks; None when it is the schema.

    By names and not by the text of the definitions, which depends on the version of SQLAlchemy that wrote it. A column
    that is computed (``hidden``) or has a default would let a prepared bank say what no row holds.
    """
    expected = {("alembic_version", "version_num")}
    for table, columns in IMMUTABLE.items():
        expected.update((table, column) for column in (*columns, *CHANGING.get(table, ()), "row_digest"))
    expected.update((name, "(index)") for name in INDEXES)
    query = (
        "SELECT tables.name, columns.name, columns.hidden OR columns.dflt_value IS NOT NULL OR tables.rootpage = 0 "
        "FROM sqlite_master AS tables JOIN pragma_table_xinfo(tables.name) AS columns WHERE tables.type = 'table' "
        "AND tables.name NOT LIKE 'sqlite_%' UNION ALL SELECT name, '(index)', 0 FROM sqlite_master "
        "WHERE type = 'index' AND name NOT LIKE 'sqlite_%'"
    )
    found = set()
    for table, column, odd in connection.execute(query):
        if odd:
            return f"{table}.{column}"
        found.add((str(table), str(column)))  # a flipped bit makes bytes of a name
    different = min(found ^ expected, default=None)
    return None if different is None else ".".join(different)


def newer_schema(layout: Layout, revision: str | None) -> IncompatibleError:
    """The refusal of a database that a newer version wrote."""
    return IncompatibleError(
        f"bank {layout.root} has schema {str(revision)[:40]!r}, which this lorabank does not know (it knows up to "
        f"{REVISIONS[-1]}): a newer version wrote it",
        hint="pip install --upgrade lorabank",
        unchanged="the bank was not changed",
    )


def read_snapshot(connection: sqlite3.Connection, layout: Layout) -> Snapshot:
    """Everything that is in the bank, as of this transaction.

    Raises:
        DamagedError: A row cannot be read.
    """
    with _sound_rows(layout):
        return _snapshot(connection, layout)


def _snapshot(connection: sqlite3.Connection, layout: Layout) -> Snapshot:
    manifest = read_manifest(layout)
    identity = connection.execute("SELECT bank_id FROM bank").fetchone()
    base = connection.execute("SELECT * FROM base_model").fetchone()
    if identity is None or base is None or identity[0] != manifest["id"]:
        raise DamagedError(f"bank {layout.root}: bank.json and bank.db belong to different banks")
    tasks = connection.execute(
        "SELECT tasks.*, adapters.digest AS adapter FROM tasks LEFT JOIN adapters ON adapters.id = tasks.position "
        "ORDER BY position"
    )
    records = [task_record(row) for row in tasks]
    damaged = {task.name for task in records if task.state == "failed"}
    compositions = _compositions(connection)
    datasets = connection.execute(
        "SELECT datasets.*, tasks.name AS task_name FROM datasets JOIN tasks ON tasks.position = datasets.task "
        "WHERE tasks.state = 'ready' ORDER BY datasets.task, datasets.id"
    )
    return Snapshot(
        id=manifest["id"],
        format=manifest["format"],
        base=base_model_record(base),
        tasks=tuple(task for task in records if task.state == "ready"),
        removed_tasks=tuple(task for task in records if task.state == "removed"),
        datasets=tuple(dataset_record(row) for row in datasets),
        by_position=_adapters(connection),
        compositions=tuple(made for made in compositions if damaged.isdisjoint(made.members)),
        damaged_tasks=tuple(task for task in records if task.state == "failed"),
        damaged_compositions=tuple(made for made in compositions if not damaged.isdisjoint(made.members)),
    )


def _adapters(connection: sqlite3.Connection) -> dict[int, AdapterRecord]:
    files: dict[int, dict[str, str]] = {}
    for adapter, name, digest in connection.execute("SELECT adapter, name, sha256 FROM adapter_files ORDER BY name"):
        files.setdefault(adapter, {})[name] = digest
    context: dict[int, list[str]] = {}
    for adapter, digest in connection.execute(
        "SELECT adapter_context.adapter, adapters.digest FROM adapter_context "
        "JOIN adapters ON adapters.id = adapter_context.member ORDER BY adapter_context.adapter, ordinal"
    ):
        context.setdefault(adapter, []).append(digest)
    objects = _objects(connection, "adapter")
    rows = connection.execute(
        "SELECT adapters.*, tasks.name AS task_name FROM adapters JOIN tasks ON tasks.position = adapters.id "
        "ORDER BY adapters.id"
    )
    return {
        row["id"]: adapter_record(
            row, files.get(row["id"], {}), context.get(row["id"], []), objects.get(row["id"], {})
        )
        for row in rows
    }


def _objects(connection: sqlite3.Connection, owner: Literal["adapter", "composition"]) -> dict[int, dict[str, str]]:
    """Digests of blobs by role, for each adapter or composition."""
    found: dict[int, dict[str, str]] = {}
    for key, role, blob in connection.execute(f"SELECT {owner}, role, blob FROM {owner}_objects ORDER BY role"):
        found.setdefault(key, {})[role] = blob
    return found


def _compositions(connection: sqlite3.Connection) -> tuple[CompositionRecord, ...]:
    members: dict[int, list[tuple[str, str]]] = {}
    for composition, task, digest in connection.execute(
        "SELECT composition, tasks.name, adapters.digest FROM composition_members "
        "JOIN adapters ON adapters.id = composition_members.adapter JOIN tasks ON tasks.position = adapters.id "
        "ORDER BY composition, ordinal"
    ):
        members.setdefault(composition, []).append((task, digest))
    objects = _objects(connection, "composition")
    rows = connection.execute("SELECT * FROM compositions WHERE state = 'ready' ORDER BY id")
    return tuple(composition_record(row, members.get(row["id"], []), objects.get(row["id"], {})) for row in rows)


def read_operations(connection: sqlite3.Connection, layout: Layout) -> list[OperationRecord]:
    """Changes under way, oldest first, each with whether its process lives.

    Raises:
        DamagedError: A row cannot be read.
    """
    from lorabank.bank.locks import is_alive

    with _sound_rows(layout):
        rows = connection.execute("SELECT * FROM operations ORDER BY started_at, id").fetchall()
        return [operation_record(row, is_alive(operation_record(row, True), row["process_start"])) for row in rows]


def read_evaluations(connection: sqlite3.Connection, layout: Layout) -> list[EvaluationRecord]:
    """Every stored score, oldest first.

    Raises:
        DamagedError: A row cannot be read.
    """
    with _sound_rows(layout):
        return [evaluation_record(row) for row in connection.execute("SELECT * FROM evaluations ORDER BY rowid")]


@contextmanager
def _sound_rows(layout: Layout) -> Iterator[None]:
    """What a record cannot be made of was not written by lorabank, or was changed since."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{layout.database}: a row cannot be read ({error})", hint="lorabank verify --full"
        ) from error
