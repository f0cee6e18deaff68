"""The rows of a task or composition, inserted inside the commit's transaction after its files are in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorabank.bank.catalog.base import Catalog, Row, Transaction, View, rows_with
from lorabank.bank.catalog.columns import NUMBER, split_tags
from lorabank.bank.catalog.events import Change, log_event
from lorabank.bank.catalog.lineage import WITHOUT, Lineages, lineage_rows
from lorabank.bank.catalog.rows import next_number, row_digest, row_of, sealed
from lorabank.bank.catalog.times import now
from lorabank.bank.failures import taken
from lorabank.bank.objects.base import Objects, Staging, StoredFile
from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import AdapterRecord, CompositionRecord, DatasetRecord, EvaluationRecord, TaskRecord


def insert_task(
    transaction: Transaction,
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
    stored, change = _put_task(transaction, objects, stage, task, adapter, splits, replaces)
    log_event(transaction, "replace" if change.tasks_removed else kind, stored.name, change)
    return stored


Version = tuple[TaskRecord, AdapterRecord, Sequence[DatasetRecord]]
"""A new version of a task, which says what it ``replaces``, with its adapter and data sets."""


def insert_fold(
    transaction: Transaction,
    objects: Objects,
    stage: Staging,
    versions: Sequence[Version],
    composition: CompositionRecord,
) -> CompositionRecord:
    """Insert new versions of several tasks and a composition of them as one change; returns the composition.

    A version may have the adapters of those before it in its context.
    """
    changes = [
        _put_task(transaction, objects, stage, task, adapter, splits, task.replaces)[1]
        for task, adapter, splits in versions
    ]
    stored, made = _put_composition(transaction, objects, stage, composition)
    gone = tuple(row for change in changes for row in change.compositions_removed)
    whole = Change(
        tuple(row for change in changes for row in change.tasks_added),
        tuple(row for change in changes for row in change.tasks_removed),
        made.compositions_added,
        gone,
    )
    log_event(transaction, "fold", stored.name, whole)
    return stored


def _put_task(
    transaction: Transaction,
    objects: Objects,
    stage: Staging,
    task: TaskRecord,
    adapter: AdapterRecord,
    splits: Sequence[DatasetRecord],
    replaces: int | None,
) -> tuple[TaskRecord, Change]:
    """The rows of a task; the task as stored, and what came and went."""
    task = _as_noted(transaction, task, replaces)
    old = _supersede(transaction, task.name, replaces)
    refuse_taken(transaction, task.name)
    position = next_number(transaction, "tasks")
    stored = task._replace(
        position=position,
        state="ready",
        adapter=adapter.digest,
        created_at=task.created_at or now(),
        first_name=_first_name(transaction, task.name, position),
        replaces=replaces,
    )
    files = _adapter_files(stage, adapter.digest)
    adapter = adapter._replace(
        bytes=sum(file.bytes for file in files), created_at=adapter.created_at or stored.created_at
    )
    of_rows = [blob for data in splits for blob in (data.blob, data.row_digests)]
    kept = [stored.statistics, *of_rows, *adapter.objects.values()]
    _insert_blobs(transaction, objects, stage, kept)
    transaction.insert("tasks", row_of("tasks", stored, removed_at=None))
    transaction.insert("adapters", row_of("adapters", adapter, id=position))
    parts = ({"adapter": position, "name": file.name, "sha256": file.sha256, "bytes": file.bytes} for file in files)
    _insert(transaction, "adapter_files", parts)
    if adapter.context:
        _insert(transaction, "adapter_context", _context(transaction, objects, position, adapter.context))
    roles = ({"adapter": position, "role": role, "blob": blob} for role, blob in sorted(adapter.objects.items()))
    _insert(transaction, "adapter_objects", roles)
    for number, data in enumerate(splits, start=next_number(transaction, "datasets")):
        transaction.insert("datasets", row_of("datasets", data, id=number, task=position))
    return stored, Change((position,), old.tasks_removed, (), old.compositions_removed)


def _as_noted(view: View, task: TaskRecord, replaces: int | None) -> TaskRecord:
    """A new version with the note and the tags of the old one where none were given for it."""
    old = _task(view, replaces)
    return task._replace(note=task.note or old["note"], tags=task.tags or split_tags(old["tags"])) if old else task


def _supersede(transaction: Transaction, name: str, position: int | None) -> Change:
    """Turn an older version of a task and the compositions that hold it into tombstones, where it is still in use."""
    old = _task(transaction, position)
    if position is None or old is None or old["state"] == "removed":
        return Change()
    if old["name"] != name:
        raise IncompatibleError(
            f"the version to replace is now called {old['name']!r}, not {name!r}",
            hint="restore its name, then resume with --resume",
            commands=[Command("rename", old["name"], name), Command("add-task", name, "--resume")],
            unchanged="the bank was not changed",
        )
    holding = {row["composition"] for row in transaction.rows("composition_members", adapter=position)}
    return Change(
        tasks_removed=mark_removed(transaction, "tasks", [position]),
        compositions_removed=mark_removed(transaction, "compositions", sorted(holding)),
    )


def _task(view: View, position: int | None) -> Row | None:
    """The row of a task, in use or not."""
    return next(iter(view.rows("tasks", position=position)), None) if position else None


def _first_name(view: View, name: str, position: int) -> str | None:
    """What is stored under a task's first name must not meet what another task has there that was renamed since."""
    renamed = (row for row in view.rows("tasks", first_name=name) if row["state"] != "removed")
    return f"{name}#{position}" if any(renamed) else None


def insert_composition(
    transaction: Transaction, objects: Objects, stage: Staging, composition: CompositionRecord, *, replace: bool
) -> CompositionRecord:
    """Insert a composition with its members and objects; returns it as stored."""
    old = in_use(transaction, "compositions", composition.name) if replace else None
    gone = mark_removed(transaction, "compositions", [old["id"]]) if old else ()
    stored, made = _put_composition(transaction, objects, stage, composition)
    log_event(transaction, "compose", stored.name, made._replace(compositions_removed=gone))
    return stored


def _put_composition(
    transaction: Transaction, objects: Objects, stage: Staging, composition: CompositionRecord
) -> tuple[CompositionRecord, Change]:
    """The rows of a composition; the composition as stored, and that it came."""
    refuse_taken(transaction, composition.name)
    stored = composition._replace(state="ready", created_at=composition.created_at or now())
    adapters = _members(transaction, composition)
    identifier = next_number(transaction, "compositions")
    _insert_blobs(transaction, objects, stage, composition.objects.values())
    transaction.insert("compositions", row_of("compositions", stored, id=identifier, removed_at=None))
    members = (
        {"composition": identifier, "ordinal": n, "adapter": adapter, "known_as": name}
        for n, (name, adapter) in enumerate(zip(composition.members, adapters, strict=True))
    )
    _insert(transaction, "composition_members", members)
    roles = sorted(composition.objects.items())
    parts = ({"composition": identifier, "role": role, "blob": blob} for role, blob in roles)
    _insert(transaction, "composition_objects", parts)
    return stored, Change(compositions_added=(identifier,))


def insert_composition_object(
    transaction: Transaction, objects: Objects, stage: Staging, composition: Row, role: str, digest: str
) -> None:
    """Insert what was derived from a composition, given by its row, after it was stored."""
    _insert_blobs(transaction, objects, stage, [digest])
    _insert(transaction, "composition_objects", [{"composition": composition["id"], "role": role, "blob": digest}])
    log_event(transaction, "derive", composition["name"], Change())


def mark_removed(transaction: Transaction, table: str, rows: Iterable[int]) -> tuple[int, ...]:
    """Turn those of some rows of ``tasks`` or ``compositions`` that are in use into tombstones; returns which."""
    gone = {"state": "removed", "removed_at": now()}
    found = [row for number in sorted(set(rows)) for row in transaction.rows(table, **{NUMBER[table]: number})]
    live = tuple(int(row[NUMBER[table]]) for row in found if row["state"] != "removed")
    for number in live:
        reseal(transaction, table, number, gone)
    return live


def bring_back(transaction: Transaction, table: str, rows: Sequence[int]) -> None:
    """Turn tombstones into rows in use; their files were checked."""
    for row in rows:
        reseal(transaction, table, row, {"state": "ready", "removed_at": None})


def reseal(transaction: Transaction, table: str, number: int, columns: Mapping[str, str | None]) -> None:
    """Change what a row's digest covers, and seal it anew."""
    key = {NUMBER[table]: number}
    (row,) = transaction.rows(table, **key)
    transaction.update(table, key, **columns, row_digest=row_digest(table, {**row, **columns}))


def rename_scores(transaction: Transaction, table: str, number: int, old: str, new: str) -> None:
    """Let the stored scores of a task or composition go by its new name.

    Scores are found by their key, which no name is part of; the name tells people whose they are. A removed task or
    composition may have had the same name: what was measured before this one was made is not its own.
    """
    (made,) = transaction.rows(table, **{NUMBER[table]: number})
    column = "task" if table == "tasks" else "subject"
    for score in transaction.rows("evaluations", **{column: old}):
        if score["created_at"] >= made["created_at"]:
            changed = {**score, column: new}
            digest = row_digest("evaluations", changed)
            transaction.update("evaluations", {"key": score["key"]}, **{column: new, "row_digest": digest})


def _insert(transaction: Transaction, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        transaction.insert(table, sealed(table, row))


def in_use(view: View, table: str, name: str) -> Row | None:
    """The row of ``tasks`` or ``compositions`` that has a name now; None where there is none."""
    return next((row for row in view.rows(table, name=name) if row["state"] != "removed"), None)


def refuse_taken(view: View, name: str) -> None:
    """Refuse a name that is in use.

    Raises:
        ExistsError: Saying by what.
    """
    for table, what in (("tasks", "task"), ("compositions", "composition")):
        if in_use(view, table, name) is not None:
            raise taken(what, name)


def _adapter_files(stage: Staging, digest: str) -> list[StoredFile]:
    if digest not in stage.adapters:
        raise _missing(f"adapter {digest[:12]} was not staged")
    return stage.adapters[digest]


def _context(view: View, objects: Objects, adapter: int, digests: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the adapters that were active in training: their files must still lie in the bank."""
    stored: dict[Any, str] = dict(view.columns("adapters", "id", "digest"))
    used = {position for position, state in view.columns("tasks", "position", "state") if state != "removed"}
    of_digest = {stored[number]: number for number in sorted(stored, key=lambda number: (number in used, -number))}
    rows = lineage_rows(
        adapter,
        [of_digest[digest] for digest in digests if digest in of_digest],
        Lineages(view, {number: number for number in stored}),
        stored,
    )
    # What an adapter in use was trained on top of stays as long as it does.
    named = [stored[row["member"]] for row in rows if row["part"] != WITHOUT]
    looked_at = named if rows and rows[0]["member"] in used else digests
    missing = [digest for digest in digests if digest not in of_digest]
    missing += [digest for digest in looked_at if not objects.holds("adapter", digest)]
    if missing:
        raise IncompatibleError(
            f"adapter {missing[0][:12]}, which was active in training, is not in the bank any more",
            hint="train it again with the same command and --restart",
            unchanged="the bank was not changed",
        )
    return rows


def _members(view: View, composition: CompositionRecord) -> list[int]:
    """The row ids of a composition's adapters."""
    digests = dict(view.columns("adapters", "id", "digest"))
    tasks = view.columns("tasks", "name", "position", "state")
    ready = {name: position for name, position, state in tasks if state == "ready"}
    for task, digest in zip(composition.members, composition.adapters, strict=True):
        if digests.get(ready.get(task)) != digest:
            raise _missing(f"task {task!r} with adapter {digest[:12]} is not in the bank")
    return [int(ready[task]) for task in composition.members]


def _insert_blobs(transaction: Transaction, objects: Objects, stage: Staging, digests: Iterable[str | None]) -> None:
    wanted = sorted({digest for digest in digests if digest})
    there = {row["digest"] for row in rows_with(transaction, "blobs", "digest", wanted)}
    for digest in wanted:
        if digest in there:
            if not objects.holds("blob", digest):
                raise _missing(f"blob {digest[:12]} is not in the bank any more")
        elif digest in stage.blobs:
            row = {"digest": digest, "bytes": stage.blobs[digest].bytes, "created_at": now()}
            _insert(transaction, "blobs", [row])
        else:
            raise _missing(f"blob {digest[:12]} was not staged")


def _missing(message: str) -> IncompatibleError:
    return IncompatibleError(message, unchanged="the bank was not changed")


def insert_evaluations(catalog: Catalog, records: Sequence[EvaluationRecord]) -> None:
    """Insert scores in one short transaction; a key that is there already stays as it is."""
    rows = [
        row_of(
            "evaluations", record._replace(created_at=record.created_at or now()), of=f"evaluation of {record.task}: "
        )
        for record in records
    ]
    if not rows:
        return
    with catalog.lock(exclusive=False), catalog.write() as transaction:
        there = {row["key"] for row in rows_with(transaction, "evaluations", "key", [row["key"] for row in rows])}
        for row in rows:
            if row["key"] not in there:
                transaction.insert("evaluations", row)
                there.add(row["key"])
