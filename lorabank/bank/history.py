"""The history of a bank for its readers: each change with the names of what it touched, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lorabank.bank.catalog.base import Catalog
from lorabank.bank.catalog.events import UNDOABLE, EventRecord, change_of, next_to_undo
from lorabank.bank.catalog.reading import read_evaluations, read_events
from lorabank.bank.catalog.rows import in_order
from lorabank.core.records import DERIVED, EvaluationRecord


class Entry(NamedTuple):
    """One change.

    Attributes:
        number: Counts from 1.
        kind: The command that made it, or ``"replace"``, ``"init"``, ``"upgrade"``, ``"repair"``, ``"derive"``.
        name: The task or composition, as it was called then.
        at: When.
        version: Version of lorabank that made it.
        added: Tasks and compositions that can be used since, by their names now.
        removed: Those that cannot be used since.
        before: Columns that became other, as they were.
        after: The same columns as they were made.
        undoes: Number of the change that it took back.
        undone_by: Number of the change that took it back.
        next: Whether ``undo`` takes this one back now.
        undoable: Whether its kind can be taken back at all.
    """

    number: int
    kind: str
    name: str
    at: str
    version: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    before: dict[str, str | None]
    after: dict[str, str | None]
    undoes: int | None
    undone_by: int | None
    next: bool
    undoable: bool


def read_history(catalog: Catalog) -> list[Entry]:
    """Every change, newest first."""
    with catalog.read() as view:
        events = read_events(view)
        tasks = {row["position"]: row["name"] for row in view.rows("tasks")}
        compositions = {row["id"]: row["name"] for row in view.rows("compositions")}
    undone = {event.undoes: event.id for event in events if event.undoes is not None}
    following = next_to_undo(events)
    entries = []
    for event in reversed(events):
        change = change_of(event)
        entries.append(
            Entry(
                number=event.id,
                kind=event.kind,
                name=event.name,
                at=event.created_at,
                version=event.version,
                added=(
                    *(tasks[row] for row in change.tasks_added if row in tasks),
                    *(compositions[row] for row in change.compositions_added if row in compositions),
                ),
                removed=(
                    *(tasks[row] for row in change.tasks_removed if row in tasks),
                    *(compositions[row] for row in change.compositions_removed if row in compositions),
                ),
                before=dict(change.before),
                after=dict(change.after),
                undoes=event.undoes,
                undone_by=undone.get(event.id),
                next=event is following,
                undoable=event.kind in UNDOABLE,
            )
        )
    return entries


def read_task_scores(catalog: Catalog, position: int) -> list[EvaluationRecord]:
    """The stored scores on a task, oldest first.

    Scores tell a task by its name alone. Another version of the task, or one that was removed, may have had the name:
    what was measured meanwhile is not this one's, unless its adapter is the same.
    """
    with catalog.read() as view:
        events = read_events(view)
        made = {row["position"]: row for row in view.rows("tasks")}
        (own,) = view.rows("adapters", id=position)
        same = [row["id"] for row in view.rows("adapters", digest=own["digest"])]
        scores = read_evaluations(view, task=made[position]["name"])
    alike = [(number, made[number]["created_at"]) for number in same if number in made]
    return _measured(scores, events, "tasks", alike)


def read_composition_scores(catalog: Catalog, name: str) -> list[EvaluationRecord]:
    """The stored scores of a composition in use, oldest first, by the rule of `read_task_scores`.

    A composition that was made again of the same adapters with the same weights answers alike.
    """
    with catalog.read() as view:
        events = read_events(view)
        made = {}
        for row in view.rows("compositions"):
            members = in_order(view.rows("composition_members", composition=row["id"]), "ordinal")
            objects = in_order(view.rows("composition_objects", composition=row["id"]), "role")
            own = [(one["role"], one["blob"]) for one in objects if not one["role"].startswith(DERIVED)]
            parts = [one["adapter"] for one in members], own
            made[row["id"]] = (row, (row["mode"], row["parameters"], parts))
        scores = read_evaluations(view, subject=name)
    wanted = [what for row, what in made.values() if row["name"] == name and row["state"] == "ready"]
    alike = [(number, row["created_at"]) for number, (row, what) in made.items() if what in wanted]
    return _measured(scores, events, "compositions", alike)


_ALWAYS = "9999"
"""After every moment."""


def _measured(
    scores: Sequence[EvaluationRecord],
    events: Sequence[EventRecord],
    table: Literal["tasks", "compositions"],
    alike: Sequence[tuple[int, str]],
) -> list[EvaluationRecord]:
    """The scores of the time in which one of some rows could be used; each row has a number and when it was made."""
    spans = [span for row, made in alike for span in _in_use(events, table, row, made)]
    return [score for score in scores if any(first <= score.created_at <= last for first, last in spans)]


def _in_use(
    events: Sequence[EventRecord], table: Literal["tasks", "compositions"], row: int, made: str
) -> list[tuple[str, str]]:
    """From when to when a task or a composition could be used."""
    found = [(made, _ALWAYS)]
    for event in events:
        change = change_of(event)
        tasks = table == "tasks"
        added = change.tasks_added if tasks else change.compositions_added
        removed = change.tasks_removed if tasks else change.compositions_removed
        first, last = found[-1]
        if row in removed and last == _ALWAYS:
            found[-1] = (first, event.created_at)
        elif row in added and last != _ALWAYS:
            found.append((event.created_at, _ALWAYS))
    return found
