"""Records from the rows of a catalog, by the standard library alone: ``lorabank list`` answers at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from lorabank.bank.catalog.base import Row, View, rows_with
from lorabank.bank.catalog.columns import sound
from lorabank.bank.catalog.lineage import Lineages
from lorabank.bank.catalog.rows import (
    adapter_record,
    composition_record,
    dataset_record,
    in_order,
    operation_record,
)
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import Command
from lorabank.core.errors import DamagedError
from lorabank.core.records import (
    AS_TRAINED,
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    EvaluationRecord,
    OperationRecord,
    TaskRecord,
)

if TYPE_CHECKING:
    from lorabank.bank.catalog.events import EventRecord


def read_snapshot(view: View, layout: Layout) -> Snapshot:
    """Everything that is in the bank, as of one state of its rows.

    Raises:
        DamagedError: A row cannot be read.
    """
    manifest = read_manifest(layout)
    identity, base = view.last("bank"), view.last("base_model")
    if identity is None or base is None or identity["bank_id"] != manifest["id"]:
        message = f"bank {layout.root}: bank.json and bank.db belong to different banks"
        raise DamagedError(message, commands=[Command("restore", "BACKUP")])
    trained, tasks = view.rows("adapters"), in_order(view.rows("tasks"), "position")
    digests = {row["id"]: row["digest"] for row in trained}
    records = [TaskRecord(**sound("tasks", {**row, "adapter": digests.get(row["position"])})) for row in tasks]
    if [task.position for task in records] != list(range(1, len(records) + 1)):
        message = f"{layout.database}: the positions of its tasks are not 1 to {len(records)}"
        raise DamagedError(message)
    if odd := [task for task in records if task.replaces is not None and task.replaces >= task.position]:
        message = f"{layout.database}: task {odd[0].position} replaces one that came later"
        raise DamagedError(message)
    damaged = {task.name for task in records if task.state == "failed"}
    every = _compositions(view, records, digests)
    compositions = [made for made in every if made.state == "ready"]
    usable = {task.name for task in records if task.state in ("ready", "failed")}
    for made in compositions:
        if not made.members or len(set(made.members)) < len(made.members) or not usable.issuperset(made.members):
            message = (
                f"composition {made.name[:80]!r} has no members, a repeated member, or a member that is not a task"
            )
            raise DamagedError(f"{layout.database}: {message}")
    ready = {task.position: task.name for task in records if task.state == "ready"}
    datasets = [row for row in view.rows("datasets") if row["task"] in ready]
    return Snapshot(
        id=manifest["id"],
        format=manifest["format"],
        base=BaseModelRecord(**sound("base_model", base)),
        tasks=tuple(task for task in records if task.state == "ready"),
        removed_tasks=tuple(task for task in records if task.state == "removed"),
        datasets=tuple(
            dataset_record({**row, "task_name": ready[row["task"]]}) for row in in_order(datasets, "task", "id")
        ),
        by_position=_adapters(view, trained, records, digests),
        compositions=tuple(made for made in compositions if damaged.isdisjoint(made.members)),
        damaged_tasks=tuple(task for task in records if task.state == "failed"),
        damaged_compositions=tuple(made for made in compositions if not damaged.isdisjoint(made.members)),
        removed_compositions=tuple(made for made in every if made.state == "removed"),
    )


def _adapters(
    view: View, trained: list[Row], tasks: list[TaskRecord], digests: dict[int, str]
) -> dict[int, AdapterRecord]:
    files: dict[int, dict[str, str]] = {}
    for row in view.rows("adapter_files"):
        file = sound("adapter_files", row)
        files.setdefault(row["adapter"], {})[file["name"]] = file["sha256"]
    lineages = Lineages(view, digests)
    objects = _objects(view, "adapter")
    owners = {task.position: {"task_name": task.name, "task_type": task.task_type} for task in tasks}
    return {
        number: adapter_record(
            {**row, **owners[number]},
            dict(sorted(files.get(number, {}).items())),
            lineages.get(number, ()),
            objects.get(number, {}),
        )
        for row in in_order(trained, "id")
        if (number := row["id"]) in owners
    }


def _objects(view: View, owner: Literal["adapter", "composition"]) -> dict[int, dict[str, str]]:
    """Digests of blobs by role, for each adapter or composition."""
    found: dict[int, dict[str, str]] = {}
    for row in in_order(view.rows(f"{owner}_objects"), "role"):
        stored = sound(f"{owner}_objects", row)
        found.setdefault(row[owner], {})[stored["role"]] = stored["blob"]
    return found


def _compositions(view: View, tasks: list[TaskRecord], digests: dict[int, str]) -> tuple[CompositionRecord, ...]:
    by_position = {task.position: task for task in tasks}
    members: dict[int, list[tuple[str, str]]] = {}
    names: dict[int, dict[str, str]] = {}
    for row in in_order(view.rows("composition_members"), "composition", "ordinal"):
        task = by_position.get(row["adapter"])
        if task is None or task.position not in digests:
            continue
        then = sound("composition_members", row)["known_as"] or task.first_name or task.name
        members.setdefault(row["composition"], []).append((task.name, digests[task.position]))
        names.setdefault(row["composition"], {})[then] = task.name
    objects = _objects(view, "composition")
    return tuple(
        composition_record(row, members.get(row["id"], []), objects.get(row["id"], {}), names.get(row["id"], {}))
        for row in in_order(view.rows("compositions"), "id")
    )


def read_events(view: View) -> list[EventRecord]:
    """The history, oldest first.

    Raises:
        DamagedError: A row cannot be read, or one is missing.
    """
    from lorabank.bank.catalog.events import EventRecord

    events = [EventRecord(**sound("events", row)) for row in in_order(view.rows("events"), "id")]
    if [event.id for event in events] != list(range(1, len(events) + 1)):
        raise DamagedError(f"bank.db: the numbers of its events are not 1 to {len(events)}")
    return events


def read_operations(view: View) -> list[OperationRecord]:
    """Changes under way, oldest first, each with whether its process lives.

    Raises:
        DamagedError: A row cannot be read.
    """
    return sorted(map(operation_record, view.rows("operations")), key=lambda one: (one.started_at, one.id))


def read_evaluations(view: View, **where: Any) -> list[EvaluationRecord]:
    """The stored scores whose columns have these values, oldest first; without values all.

    Raises:
        DamagedError: A row cannot be read.
    """
    return [EvaluationRecord(**sound("evaluations", row)) for row in view.rows("evaluations", **where)]


def read_scores(view: View, keys: Iterable[str]) -> dict[str, EvaluationRecord]:
    """The stored scores with these keys, by key.

    Raises:
        DamagedError: A row cannot be read.
    """
    found = rows_with(view, "evaluations", "key", keys)
    return {row["key"]: EvaluationRecord(**sound("evaluations", row)) for row in found}


def read_learnt_scores(view: View, snapshot: Snapshot) -> dict[int, EvaluationRecord]:
    """The newest score of each task right after it was learnt, as trained and with its id given, by its position.

    Raises:
        DamagedError: A row cannot be read.
    """
    found = {}
    for task in (*snapshot.tasks, *snapshot.damaged_tasks, *snapshot.removed_tasks):
        cells = read_evaluations(view, task=task.name, stage=task.position, subject=AS_TRAINED, task_id="given")
        if cells:
            found[task.position] = max(cells, key=lambda cell: cell.created_at)
    return found
