"""The history of a bank: one row for each change, written in the transaction of the change, never changed after.

An event says what came, what went and what became other, by the numbers of rows, which never come again. Turned round
it says how to take the change back: `lorabank.bank.upkeep.undo`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lorabank.bank.catalog.rows import next_number, row_of

if TYPE_CHECKING:
    from lorabank.bank.catalog.base import Transaction

UNDOABLE = ("add-task", "import", "compose", "replace", "fold", "remove", "rename", "note", "tag")
"""Kinds of changes that can be taken back, when nothing came after them."""


class EventRecord(NamedTuple):
    """One change of a bank, as its history keeps it.

    Attributes:
        id: Its number, from 1, without gaps.
        kind: ``"add-task"``, ``"import"``, ``"compose"``, ``"replace"``, ``"fold"``, ``"remove"``, ``"rename"``,
            ``"note"``, ``"tag"``, ``"undo"``, ``"repair"``, ``"init"``, ``"upgrade"`` or ``"derive"``.
        name: The task or composition, as it was called then; empty where it is about the whole bank.
        detail: What came, what went and what became other: see `Change`.
        undoes: Number of the change that this one took back.
        version: Version of lorabank that made it.
    """

    id: int
    kind: str
    name: str
    detail: dict[str, Any]
    undoes: int | None
    version: str
    created_at: str


class Change(NamedTuple):
    """What one change did.

    Attributes:
        tasks_added: Positions of tasks that can be used since.
        tasks_removed: Positions of tasks that cannot be used since.
        compositions_added: As for tasks, by the numbers of their rows.
        compositions_removed: As for tasks.
        of: The table of the row whose columns became other, or None.
        row: The number of that row.
        before: Its columns as they were.
        after: Its columns as they are.
    """

    tasks_added: tuple[int, ...] = ()
    tasks_removed: tuple[int, ...] = ()
    compositions_added: tuple[int, ...] = ()
    compositions_removed: tuple[int, ...] = ()
    of: str | None = None
    row: int | None = None
    before: Mapping[str, str | None] = {}
    after: Mapping[str, str | None] = {}

    @property
    def detail(self) -> dict[str, Any]:
        """As JSON values; what is empty is left out."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self._asdict().items()
            if value not in ((), None, {})
        }

    @property
    def inverse(self) -> Change:
        """What takes it back."""
        return Change(
            self.tasks_removed,
            self.tasks_added,
            self.compositions_removed,
            self.compositions_added,
            self.of,
            self.row,
            self.after,
            self.before,
        )


def change_of(event: EventRecord) -> Change:
    """What an event says that its change did."""
    known: dict[str, Any] = {key: event.detail[key] for key in Change._fields if key in event.detail}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    return Change(**values)


def next_to_undo(history: Sequence[EventRecord]) -> EventRecord | None:
    """The newest change that can be taken back and was not yet; None when there is none.

    Args:
        history: All events, oldest first.
    """
    return next(iter(left_to_undo(history)), None)


def left_to_undo(history: Sequence[EventRecord]) -> list[EventRecord]:
    """What ``undo``, repeated, would take back: newest first."""
    undone = {event.undoes for event in history}
    return [event for event in reversed(history) if event.kind in UNDOABLE and event.id not in undone]


def first_event(kind: str, created_at: str) -> dict[str, Any]:
    """The row that the history of a bank begins with."""
    from lorabank import __version__

    return row_of("events", EventRecord(1, kind, "", {}, None, __version__, created_at))


def log_event(transaction: Transaction, kind: str, name: str, change: Change, *, undoes: int | None = None) -> None:
    """Write an event in the transaction of its change."""
    from lorabank import __version__
    from lorabank.bank.catalog.times import now

    number = next_number(transaction, "events")
    record = EventRecord(number, kind, name, change.detail, undoes, __version__, now())
    transaction.insert("events", row_of("events", record))
