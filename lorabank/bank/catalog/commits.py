"""The rows of a task or composition, inserted inside the commit's transaction after its files are in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, select

from lorabank.bank.catalog.columns import split_tags
from lorabank.bank.catalog.database import writing
from lorabank.bank.catalog.events import Change, log_event
from lorabank.bank.catalog.rows import row_digest, row_of, sealed
from lorabank.bank.catalog.schema import (
    adapter_context,
    adapter_files,
    adapter_objects,
    adapters,
    blobs,
    composition_members,
    composition_objects,
    compositions,
    datasets,
    evaluations,
    tasks,
)
from lorabank.bank.catalog.times import now
from lorabank.bank.failures import taken
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.base import Objects, Staging, StoredFile
from lorabank.bank.objects.layout import Layout
from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import AdapterRecord, CompositionRecord, DatasetRecord, EvaluationRecord, TaskRecord


def insert_task(
    connection: Connection,
    objects: Objects,
    stage: Staging,
    task: TaskRecord,
    adapter: AdapterRecord,
    splits: Sequence[DatasetRecord],
    *,
    kind: str,
    replaces: int | None = None,
) -> TaskRecord:
    """Insert a task with its adapter and data sets, in the place of an older version; returns the task as stored."""
    task = _as_noted(connection, task, replaces)
    old = _supersede(connection, task.name, replaces)
    refuse_taken(connection, task.name)
    position = _next(connection, tasks.c.position)
    stored = task._replace(
        position=position,
        state="ready",
        adapter=adapter.digest,
        created_at=task.created_at or now(),
        first_name=_first_name(connection, task.name, position),
        replaces=replaces,
    )
    files = _adapter_files(connection, stage, adapter.digest)
    adapter = adapter._replace(
        bytes=sum(file.bytes for file in files), created_at=adapter.created_at or stored.created_at
    )
    of_rows = [blob for data in splits for blob in (data.blob, data.row_digests)]
    kept = [stored.statistics, *of_rows, *adapter.objects.values()]
    _insert_blobs(connection, objects, stage, kept)
    connection.execute(tasks.insert(), row_of("tasks", stored, removed_at=None))
    connection.execute(adapters.insert(), row_of("adapters", adapter, id=position))
    _insert(
        connection,
        adapter_files,
        ({"adapter": position, "name": file.name, "sha256": file.sha256, "bytes": file.bytes} for file in files),
    )
    members = [_context_member(connection, objects, digest) for digest in adapter.context]
    rows = ({"adapter": position, "ordinal": n, "member": member} for n, member in enumerate(members))
    _insert(connection, adapter_context, rows)
    roles = sorted(adapter.objects.items())
    _insert(connection, adapter_objects, ({"adapter": position, "role": role, "blob": blob} for role, blob in roles))
    first = _next(connection, datasets.c.id)
    for number, data in enumerate(splits, start=first):
        connection.execute(datasets.insert(), row_of("datasets", data, id=number, task=position))
    change = Change((position,), old.tasks_removed, (), old.compositions_removed)
    log_event(connection, "replace" if old.tasks_removed else kind, stored.name, change)
    return stored


def _as_noted(connection: Connection, task: TaskRecord, replaces: int | None) -> TaskRecord:
    """A new version with the note and the tags of the old one where none were given for it."""
    old = connection.execute(tasks.select().where(tasks.c.position == replaces)).first() if replaces else None
    return task if old is None else task._replace(note=task.note or old.note, tags=task.tags or split_tags(old.tags))


def _supersede(connection: Connection, name: str, position: int | None) -> Change:
    """Turn an older version of a task and the compositions that hold it into tombstones, where it is still in use."""
    found = tasks.select().where(tasks.c.position == position, tasks.c.state != "removed")
    if position is None or (old := connection.execute(found).first()) is None:
        return Change()
    if old.name != name:
        raise IncompatibleError(
            f"the version that is to be replaced is called {old.name!r} now, not {name!r}",
            hint="give it back its name, and go on with --resume",
            commands=[Command("rename", old.name, name), Command("add-task", name, "--resume")],
            unchanged="the bank was not changed",
        )
    gone = mark_removed(connection, tasks, tasks.c.position == position)
    holding = select(composition_members.c.composition).where(composition_members.c.adapter == position)
    return Change(
        tasks_removed=gone, compositions_removed=mark_removed(connection, compositions, compositions.c.id.in_(holding))
    )


def _first_name(connection: Connection, name: str, position: int) -> str | None:
    """What is stored under a task's first name must not meet what another task has there that was renamed since."""
    renamed = tasks.select().where(tasks.c.first_name == name, tasks.c.state != "removed")
    return f"{name}#{position}" if connection.execute(renamed).first() else None


def insert_composition(
    connection: Connection, objects: Objects, stage: Staging, composition: CompositionRecord, *, replace: bool
) -> CompositionRecord:
    """Insert a composition with its members and objects; returns it as stored."""
    gone = mark_removed(connection, compositions, compositions.c.name == composition.name) if replace else ()
    refuse_taken(connection, composition.name)
    stored = _dated(composition)
    members = [
        _member(connection, task, digest)
        for task, digest in zip(composition.members, composition.adapters, strict=True)
    ]
    identifier = _next(connection, compositions.c.id)
    _insert_blobs(connection, objects, stage, composition.objects.values())
    connection.execute(compositions.insert(), row_of("compositions", stored, id=identifier, removed_at=None))
    rows = (
        {"composition": identifier, "ordinal": n, "adapter": member, "known_as": name}
        for n, (name, member) in enumerate(zip(composition.members, members, strict=True))
    )
    _insert(connection, composition_members, rows)
    roles = sorted(composition.objects.items())
    _insert(
        connection,
        composition_objects,
        ({"composition": identifier, "role": role, "blob": blob} for role, blob in roles),
    )
    change = Change(compositions_added=(identifier,), compositions_removed=gone)
    log_event(connection, "compose", stored.name, change)
    return stored


def mark_removed(connection: Connection, table: Table, condition: Any) -> tuple[int, ...]:
    """Turn live rows of ``tasks`` or ``compositions`` into tombstones; returns their numbers."""
    (number,) = table.primary_key
    live = [int(row[0]) for row in connection.execute(select(number).where(condition, table.c.state != "removed"))]
    gone = {"state": "removed", "removed_at": now()}
    for row in live:
        reseal(connection, table, row, gone)
    return tuple(live)


def mark_rows_removed(connection: Connection, table: Table, rows: Sequence[int]) -> None:
    """Turn rows into tombstones by their numbers."""
    (number,) = table.primary_key
    mark_removed(connection, table, number.in_(rows))


def bring_back(connection: Connection, table: Table, rows: Sequence[int]) -> None:
    """Turn tombstones into rows in use; their files were checked."""
    for row in rows:
        reseal(connection, table, row, {"state": "ready", "removed_at": None})


def reseal(connection: Connection, table: Table, row: int, columns: Mapping[str, str | None]) -> None:
    """Change what a row's digest covers, and seal it anew."""
    (number,) = table.primary_key
    found = connection.execute(table.select().where(number == row)).one()._asdict() | dict(columns)
    changed = {**columns, "row_digest": row_digest(table.name, found)}
    connection.execute(table.update().where(number == row).values(changed))


def rename_scores(connection: Connection, table: Table, row: int, old: str, new: str) -> None:
    """Let the stored scores of a task or composition go by its new name.

    Scores are found by their key, which no name is part of; the name tells people whose they are. A removed task or
    composition may have had the same name: what was measured before this one was made is not its own.
    """
    (number,) = table.primary_key
    made = connection.execute(select(table.c.created_at).where(number == row)).scalar_one()
    named = evaluations.c.task if table is tasks else evaluations.c.subject
    found = connection.execute(evaluations.select().where(named == old, evaluations.c.created_at >= made)).fetchall()
    for score in found:
        changed = sealed("evaluations", {**_unsealed(score), named.name: new})
        connection.execute(evaluations.update().where(evaluations.c.key == score.key).values(changed))


def _unsealed(row: Any) -> dict[str, Any]:
    return {column: value for column, value in row._asdict().items() if column != "row_digest"}


def _dated(composition: CompositionRecord) -> CompositionRecord:
    return composition._replace(state="ready", created_at=composition.created_at or now())


def _insert(connection: Connection, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        connection.execute(table.insert(), sealed(table.name, row))


def _next(connection: Connection, column: Any) -> int:
    """One more than the largest number ever used: rows are never deleted."""
    return int(connection.execute(select(func.coalesce(func.max(column), 0) + 1)).scalar_one())


def refuse_taken(connection: Connection, name: str) -> None:
    """Refuse a name that is in use.

    Raises:
        ExistsError: Saying by what.
    """
    for table, what in ((tasks, "task"), (compositions, "composition")):
        if connection.execute(table.select().where(table.c.name == name, table.c.state != "removed")).first():
            raise taken(what, name)


def _adapter_files(connection: Connection, stage: Staging, digest: str) -> list[StoredFile]:
    if digest not in stage.adapters:
        raise _missing(f"adapter {digest[:12]} was not staged")
    return stage.adapters[digest]


def _context_member(connection: Connection, objects: Objects, digest: str) -> int:
    """The row of an adapter that was active in training: its files must still lie in the bank."""
    row = connection.execute(
        select(adapters.c.id)
        .join(tasks, tasks.c.position == adapters.c.id)
        .where(adapters.c.digest == digest)
        .order_by(tasks.c.state == "removed", adapters.c.id)
    ).first()
    if row is None or not objects.holds("adapter", digest):
        raise IncompatibleError(
            f"adapter {digest[:12]}, which was active in training, is not in the bank any more",
            hint="train it again with the same command and --restart",
            unchanged="the bank was not changed",
        )
    return int(row[0])


def _member(connection: Connection, task: str, digest: str) -> int:
    row = connection.execute(
        select(adapters.c.id, adapters.c.digest)
        .join(tasks, tasks.c.position == adapters.c.id)
        .where(tasks.c.name == task, tasks.c.state == "ready")
    ).first()
    if row is None or row.digest != digest:
        raise _missing(f"task {task!r} with adapter {digest[:12]} is not in the bank")
    return int(row.id)


def _insert_blobs(connection: Connection, objects: Objects, stage: Staging, digests: Iterable[str | None]) -> None:
    for digest in sorted({digest for digest in digests if digest}):
        if connection.execute(blobs.select().where(blobs.c.digest == digest)).first():
            if not objects.holds("blob", digest):
                raise _missing(f"blob {digest[:12]} is not in the bank any more")
        elif digest in stage.blobs:
            row = {"digest": digest, "bytes": stage.blobs[digest].bytes, "created_at": now()}
            _insert(connection, blobs, [row])
        else:
            raise _missing(f"blob {digest[:12]} was not staged")


def _missing(message: str) -> IncompatibleError:
    return IncompatibleError(message, unchanged="the bank was not changed")


def insert_evaluations(layout: Layout, records: Sequence[EvaluationRecord]) -> None:
    """Insert scores in one short transaction; a key that is there already stays as it is."""
    rows = [
        row_of(
            "evaluations", record._replace(created_at=record.created_at or now()), of=f"evaluation of {record.task}: "
        )
        for record in records
    ]
    if not rows:
        return
    with bank_lock(layout.lock, exclusive=False), writing(layout) as connection:
        for row in rows:
            connection.execute(evaluations.insert().prefix_with("OR IGNORE"), row)
