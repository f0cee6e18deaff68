"""The history of a bank for its readers: each change with the names of what it touched, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lorabank.bank.events import UNDOABLE, EventRecord, change_of, next_to_undo
from lorabank.bank.layout import Layout
from lorabank.bank.reading import read_evaluations, read_events, reading
from lorabank.core.records import EvaluationRecord


class Entry(NamedTuple):
    """One change.

    Attributes:
        number: Counts from 1.
        kind: The command that made it, or ``"replace"``, ``"init"``, ``"upgrade"``, ``"repair"``.
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


def read_history(layout: Layout) -> list[Entry]:
    """Every change, newest first."""
    with reading(layout) as connection:
        events = read_events(connection)
        tasks = dict(connection.execute("SELECT position, name FROM tasks").fetchall())
        compositions = dict(connection.execute("SELECT id, name FROM compositions").fetchall())
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


def read_task_scores(layout: Layout, position: int) -> list[EvaluationRecord]:
    """The stored scores on a task, oldest first.

    Scores tell a task by its name alone. Another version of the task, or one that was removed, may have had the name:
    what was measured meanwhile is not this one's, unless its adapter is the same.
    """
    with reading(layout) as connection:
        events = read_events(connection)
        alike = connection.execute(
            "SELECT tasks.position, tasks.created_at FROM tasks JOIN adapters ON adapters.id = tasks.position "
            "WHERE adapters.digest = (SELECT digest FROM adapters WHERE id = ?)",
            (position,),
        ).fetchall()
        (name,) = connection.execute("SELECT name FROM tasks WHERE position = ?", (position,)).fetchone()
        scores = [score for score in read_evaluations(connection, layout) if score.task == name]
    spans = [span for row, made in alike for span in _in_use(events, row, made)]
    return [score for score in scores if any(first <= score.created_at <= last for first, last in spans)]


_ALWAYS = "9999"
"""After every moment."""


def _in_use(events: Sequence[EventRecord], position: int, made: str) -> list[tuple[str, str]]:
    """From when to when a task could be used."""
    found = [(made, _ALWAYS)]
    for event in events:
        change = change_of(event)
        first, last = found[-1]
        if position in change.tasks_removed and last == _ALWAYS:
            found[-1] = (first, event.created_at)
        elif position in change.tasks_added and last != _ALWAYS:
            found.append((event.created_at, _ALWAYS))
    return found
