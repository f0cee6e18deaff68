"""Taking the last change back, in one transaction, while its files are there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lorabank.bank.catalog.columns import fits
from lorabank.bank.catalog.events import Change, EventRecord, change_of, left_to_undo, next_to_undo
from lorabank.bank.catalog.reading import read_events, read_snapshot, reading
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.base import Objects
from lorabank.bank.objects.layout import Layout
from lorabank.bank.upkeep.referenced import live_files
from lorabank.core.commands import VERIFY, Command
from lorabank.core.errors import DamagedError, ExistsError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

_UNCHANGED = "the bank was not changed"
_COPY = "put a copy of the whole bank back that still has them"
_RESTORE = (Command("restore", "COPY"),)


class UndoResult(NamedTuple):
    """What an undo did, or would do.

    Attributes:
        event: The change that was taken back.
        back: Names of the tasks and compositions that can be used again.
        gone: Names of those that cannot be used any more.
        before: Of a row whose columns became other: the columns as they were before the undo.
        after: The same columns as they are now.
    """

    event: EventRecord
    back: tuple[str, ...]
    gone: tuple[str, ...]
    before: dict[str, str | None]
    after: dict[str, str | None]


def undo(layout: Layout, objects: Objects, *, dry_run: bool) -> UndoResult:
    """Take the newest change back that was not taken back yet; see ``Bank.undo``."""
    if dry_run:
        with reading(layout) as connection:
            return _plan(connection, objects)
    from lorabank.bank.catalog.commits import bring_back, mark_rows_removed
    from lorabank.bank.catalog.database import writing
    from lorabank.bank.catalog.events import log_event
    from lorabank.bank.catalog.schema import compositions, tasks
    from lorabank.bank.operations import refuse_live, refuse_reserved
    from lorabank.bank.upkeep.remarks import put_columns

    # No gc meanwhile: it holds the lock alone.
    with bank_lock(layout.lock, exclusive=False), writing(layout) as transaction:
        refuse_live(transaction, layout)
        with driver_of(transaction) as connection:
            planned = _plan(connection, objects)
        change = change_of(planned.event).inverse
        owners = {*change.tasks_added, *([change.row] if change.of == tasks.name and change.row else [])}
        refuse_reserved(transaction, layout, {*planned.back, planned.after.get("name") or ""}, owners=owners)
        sides: tuple[tuple[Table, Sequence[int], Sequence[int]], ...] = (
            (tasks, change.tasks_removed, change.tasks_added),
            (compositions, change.compositions_removed, change.compositions_added),
        )
        for table, goes, comes in sides:
            mark_rows_removed(transaction, table, goes)
            bring_back(transaction, table, comes)
        if change.of is not None:
            put_columns(transaction, change)
        log_event(transaction, "undo", planned.event.name, change, undoes=planned.event.id)
        with driver_of(transaction) as connection:
            read_snapshot(connection, layout)  # what does not fit together is rolled back
    return planned


@contextmanager
def driver_of(transaction: Connection) -> Iterator[sqlite3.Connection]:
    """The driver's connection of a transaction, for what reads with the standard library alone."""
    connection = transaction.connection.driver_connection
    assert isinstance(connection, sqlite3.Connection)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.row_factory = None


def _plan(connection: sqlite3.Connection, objects: Objects) -> UndoResult:
    """What would be taken back, after it was checked that it can be.

    Raises:
        NotFoundError: There is nothing to take back, or files of it are gone.
        ExistsError: A name that would come back is in use.
        DamagedError: The history does not fit the rows, or a file is damaged.
    """
    event = next_to_undo(read_events(connection))
    if event is None:
        raise NotFoundError("there is nothing to undo", commands=[Command("log")], unchanged=_UNCHANGED)
    change = change_of(event).inverse
    back = (
        *_names(connection, event, "tasks", change.tasks_added, live=False),
        *_names(connection, event, "compositions", change.compositions_added, live=False),
    )
    gone = (
        *_names(connection, event, "tasks", change.tasks_removed, live=True),
        *_names(connection, event, "compositions", change.compositions_removed, live=True),
    )
    before, after = dict(change.before), dict(change.after)
    if change.of is not None:
        _check_columns(connection, event, change)
    _refuse_taken(connection, [*back, *([name] if (name := after.get("name")) else [])], gone)
    _check_files(connection, objects, event, change)
    return UndoResult(event, back, gone, before, after)


_NUMBER = {"tasks": "position", "compositions": "id"}


def _names(
    connection: sqlite3.Connection, event: EventRecord, table: str, rows: Sequence[int], *, live: bool
) -> Iterator[str]:
    """The names of rows, each of which must be in use or not, as the history says."""
    for row in rows:
        found = connection.execute(f"SELECT name, state FROM {table} WHERE {_NUMBER[table]} = ?", (row,)).fetchone()
        if found is None or (found["state"] != "removed") != live:
            raise _unfit(event)
        yield found["name"]


def _check_columns(connection: sqlite3.Connection, event: EventRecord, change: Change) -> None:
    allowed = {"name", "note", "tags"} | ({"first_name"} if change.of == "tasks" else set())
    if change.of not in _NUMBER or not change.before.keys() == change.after.keys() <= allowed:
        raise _unfit(event)
    if not fits(change.of, change.after):
        raise _unfit(event)
    query = f"SELECT * FROM {change.of} WHERE {_NUMBER[change.of]} = ?"
    row = connection.execute(query, (change.row,)).fetchone()
    if row is None or any(row[column] != value for column, value in change.before.items()):
        raise _unfit(event)


def _unfit(event: EventRecord) -> DamagedError:
    return DamagedError(
        f"bank.db: change {event.id} ({event.kind} {event.name[:80]!r}) does not fit what the bank holds",
        commands=[VERIFY],
        unchanged=_UNCHANGED,
    )


def _refuse_taken(connection: sqlite3.Connection, names: Sequence[str], gone: Sequence[str]) -> None:
    """A name that comes back must be free."""
    for table in _NUMBER:
        used = {row[0] for row in connection.execute(f"SELECT name FROM {table} WHERE state != 'removed'")}
        for name in names:
            if name in used.difference(gone):
                raise ExistsError(
                    f"{name!r} cannot come back: another has the name",
                    commands=[Command("remove", name)],
                    unchanged=_UNCHANGED,
                )


def _check_files(connection: sqlite3.Connection, objects: Objects, event: EventRecord, change: Change) -> None:
    """The files of what comes back, beside those in use, must be there and be what they were."""
    now = live_files(connection)
    then = live_files(connection, tasks=change.tasks_added, compositions=change.compositions_added)
    what = f"{event.kind} {event.name!r} of {event.created_at[:19]}Z cannot be taken back"
    for full in (False, True):
        problems: list[str] = []
        for digest, (task, files) in then.adapters.items():
            if digest not in now.adapters and (found := objects.adapter_problems(digest, files, full=full)):
                problems.append(f"adapters/{digest} (task {task}): {found[0]}")
        for digest, file in then.blobs.items():
            if digest not in now.blobs and (found := objects.blob_problems(file, full=full)):
                problems.append(f"blobs/{digest[:2]}/{digest} ({then.owners[digest]}): {found[0]}")
        if not problems:
            continue
        more = f", and {len(problems) - 1} more" if problems[1:] else ""
        if full:
            message = f"{what}: {problems[0]}{more}"
            raise DamagedError(message, hint=_COPY, commands=_RESTORE, unchanged=_UNCHANGED)
        message = f"{what}, since files are gone: {problems[0]}{more}"
        raise NotFoundError(message, hint=_COPY, commands=_RESTORE, unchanged=_UNCHANGED)


def lost_with(connection: sqlite3.Connection, digests: set[str]) -> tuple[EventRecord, ...]:
    """The changes that cannot be taken back any more once these adapters and blobs are gone, newest first.

    ``undo`` goes back one by one: the first one that cannot be taken back stops it.
    """
    left = left_to_undo(read_events(connection))
    tasks: set[int] = set()
    compositions: set[int] = set()
    for number, event in enumerate(left):
        change = change_of(event).inverse
        tasks.update(change.tasks_added)
        compositions.update(change.compositions_added)
        if change.tasks_added or change.compositions_added:
            then = live_files(connection, tasks=tasks, compositions=compositions)
            if digests & {*then.adapters, *then.blobs}:
                return tuple(left[number:])
    return ()
