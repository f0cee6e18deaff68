"""Reading a bank with the standard library's sqlite3: no SQLAlchemy, so that ``lorabank list`` answers at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Literal

from lorabank.bank.catalog.columns import sound
from lorabank.bank.catalog.connections import connect_to_read
from lorabank.bank.catalog.definitions import REVISIONS, newer_schema, read_revision
from lorabank.bank.catalog.rows import adapter_record, composition_record, dataset_record, operation_record
from lorabank.bank.failures import reported
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import VERIFY, Command
from lorabank.core.errors import DamagedError, IncompatibleError
from lorabank.core.records import (
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    EvaluationRecord,
    OperationRecord,
    TaskRecord,
)

if TYPE_CHECKING:
    from lorabank.bank.catalog.events import EventRecord


@contextmanager
def reading(layout: Layout) -> Iterator[sqlite3.Connection]:
    """One read transaction on a database whose schema is checked.

    Raises:
        IncompatibleError: The schema is newer or older than this version's.
        DamagedError: It is not the database of a bank.
    """
    with reported(layout.root), closing(connect_to_read(layout.database)) as connection:
        connection.row_factory = sqlite3.Row
        _refuse_other_schema(read_revision(connection), layout)
        yield connection


def _refuse_other_schema(revision: str, layout: Layout) -> None:
    if revision == REVISIONS[-1]:
        return
    if revision in REVISIONS:
        raise IncompatibleError(
            f"bank {layout.root} has schema {revision}, this lorabank needs {REVISIONS[-1]}",
            commands=[Command("db", "upgrade")],
            unchanged="the bank was not changed",
        )
    raise newer_schema(layout.database, revision)


def read_snapshot(connection: sqlite3.Connection, layout: Layout) -> Snapshot:
    """Everything that is in the bank, as of this transaction.

    Raises:
        DamagedError: A row cannot be read.
    """
    manifest = read_manifest(layout)
    identity = connection.execute("SELECT bank_id FROM bank").fetchone()
    base = connection.execute("SELECT * FROM base_model").fetchone()
    if identity is None or base is None or identity[0] != manifest["id"]:
        raise DamagedError(f"bank {layout.root}: bank.json and bank.db belong to different banks")
    tasks = connection.execute(
        "SELECT tasks.*, adapters.digest AS adapter FROM tasks LEFT JOIN adapters ON adapters.id = tasks.position "
        "ORDER BY position"
    )
    records = [TaskRecord(**sound("tasks", row)) for row in tasks]
    if [task.position for task in records] != list(range(1, len(records) + 1)):
        message = f"{layout.database}: the positions of its tasks are not 1 to {len(records)}"
        raise DamagedError(message, commands=[VERIFY])
    if odd := [task for task in records if task.replaces is not None and task.replaces >= task.position]:
        message = f"{layout.database}: task {odd[0].position} replaces one that came later"
        raise DamagedError(message, commands=[VERIFY])
    damaged = {task.name for task in records if task.state == "failed"}
    every = _compositions(connection)
    compositions = [made for made in every if made.state == "ready"]
    usable = {task.name for task in records if task.state in ("ready", "failed")}
    for made in compositions:
        if not made.members or len(set(made.members)) < len(made.members) or not usable.issuperset(made.members):
            message = f"composition {made.name[:80]!r} has no members, or twice the same, or others than tasks"
            raise DamagedError(f"{layout.database}: {message}", commands=[VERIFY])
    datasets = connection.execute(
        "SELECT datasets.*, tasks.name AS task_name FROM datasets JOIN tasks ON tasks.position = datasets.task "
        "WHERE tasks.state = 'ready' ORDER BY datasets.task, datasets.id"
    )
    return Snapshot(
        id=manifest["id"],
        format=manifest["format"],
        base=BaseModelRecord(**sound("base_model", base)),
        tasks=tuple(task for task in records if task.state == "ready"),
        removed_tasks=tuple(task for task in records if task.state == "removed"),
        datasets=tuple(dataset_record(row) for row in datasets),
        by_position=_adapters(connection),
        compositions=tuple(made for made in compositions if damaged.isdisjoint(made.members)),
        damaged_tasks=tuple(task for task in records if task.state == "failed"),
        damaged_compositions=tuple(made for made in compositions if not damaged.isdisjoint(made.members)),
        removed_compositions=tuple(made for made in every if made.state == "removed"),
    )


def _adapters(connection: sqlite3.Connection) -> dict[int, AdapterRecord]:
    files: dict[int, dict[str, str]] = {}
    for row in connection.execute("SELECT * FROM adapter_files ORDER BY name"):
        file = sound("adapter_files", row)
        files.setdefault(row["adapter"], {})[file["name"]] = file["sha256"]
    context: dict[int, list[str]] = {}
    for adapter, member, digest in connection.execute(
        "SELECT adapter_context.adapter, member, adapters.digest FROM adapter_context "
        "JOIN adapters ON adapters.id = member ORDER BY adapter_context.adapter, ordinal"
    ):
        if member >= adapter:
            raise DamagedError(f"bank.db: task {adapter} was not trained on top of task {member}", commands=[VERIFY])
        context.setdefault(adapter, []).append(digest)
    objects = _objects(connection, "adapter")
    rows = connection.execute(
        "SELECT adapters.*, tasks.name AS task_name, task_type FROM adapters "
        "JOIN tasks ON tasks.position = adapters.id ORDER BY adapters.id"
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
    for row in connection.execute(f"SELECT * FROM {owner}_objects ORDER BY role"):
        stored = sound(f"{owner}_objects", row)
        found.setdefault(row[owner], {})[stored["role"]] = stored["blob"]
    return found


def _compositions(connection: sqlite3.Connection) -> tuple[CompositionRecord, ...]:
    members: dict[int, list[tuple[str, str]]] = {}
    names: dict[int, dict[str, str]] = {}
    for row in connection.execute(
        "SELECT composition, known_as, tasks.name, first_name, adapters.digest FROM composition_members "
        "JOIN adapters ON adapters.id = composition_members.adapter JOIN tasks ON tasks.position = adapters.id "
        "ORDER BY composition, ordinal"
    ):
        then = sound("composition_members", row)["known_as"] or row["first_name"] or row["name"]
        members.setdefault(row["composition"], []).append((row["name"], row["digest"]))
        names.setdefault(row["composition"], {})[then] = row["name"]
    objects = _objects(connection, "composition")
    rows = connection.execute("SELECT * FROM compositions ORDER BY id")
    return tuple(
        composition_record(row, members.get(row["id"], []), objects.get(row["id"], {}), names.get(row["id"], {}))
        for row in rows
    )


def read_events(connection: sqlite3.Connection) -> list[EventRecord]:
    """The history, oldest first.

    Raises:
        DamagedError: A row cannot be read, or one is missing.
    """
    from lorabank.bank.catalog.events import EventRecord

    events = [EventRecord(**sound("events", row)) for row in connection.execute("SELECT * FROM events ORDER BY id")]
    if [event.id for event in events] != list(range(1, len(events) + 1)):
        raise DamagedError(f"bank.db: the numbers of its events are not 1 to {len(events)}", commands=[VERIFY])
    return events


def read_operations(connection: sqlite3.Connection, layout: Layout) -> list[OperationRecord]:
    """Changes under way, oldest first, each with whether its process lives.

    Raises:
        DamagedError: A row cannot be read.
    """
    rows = connection.execute("SELECT * FROM operations ORDER BY started_at, id").fetchall()
    return [operation_record(row) for row in rows]


def read_evaluations(connection: sqlite3.Connection, layout: Layout) -> list[EvaluationRecord]:
    """Every stored score, oldest first.

    Raises:
        DamagedError: A row cannot be read.
    """
    rows = connection.execute("SELECT * FROM evaluations ORDER BY rowid")
    return [EvaluationRecord(**sound("evaluations", row)) for row in rows]
