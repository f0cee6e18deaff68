"""The history of a bank for its readers: each change with the names of what it touched, and what became of it."""

from __future__ import annotations

from typing import NamedTuple

from lorabank.bank.events import UNDOABLE, change_of, next_to_undo
from lorabank.bank.layout import Layout
from lorabank.bank.reading import read_events, reading


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
