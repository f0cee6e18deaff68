"""Taking the last change back, in one transaction, while its files are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lorabank.bank.catalog.base import Catalog, View
from lorabank.bank.catalog.columns import NUMBER, fits
from lorabank.bank.catalog.commits import bring_back, mark_removed
from lorabank.bank.catalog.events import Change, EventRecord, change_of, left_to_undo, log_event, next_to_undo
from lorabank.bank.catalog.reading import read_events, read_snapshot
from lorabank.bank.objects.base import Objects
from lorabank.bank.objects.layout import Layout
from lorabank.bank.operations import refuse_live, refuse_reserved
from lorabank.bank.upkeep.referenced import live_files
from lorabank.bank.upkeep.remarks import put_columns
from lorabank.core.commands import Command
from lorabank.core.errors import DamagedError, ExistsError, NotFoundError

_UNCHANGED = "the bank was not changed"
_COPY = "restore a copy of the whole bank that still has them"
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


def undo(layout: Layout, catalog: Catalog, objects: Objects, *, dry_run: bool) -> UndoResult:
    """Take the newest change back that was not taken back yet; see ``Bank.undo``."""
    if dry_run:
        with catalog.read() as view:
            return _plan(view, objects)
    # No gc meanwhile: it holds the lock alone.
    with catalog.lock(exclusive=False), catalog.write() as transaction:
        refuse_live(transaction, layout)
        planned = _plan(transaction, objects)
        change = change_of(planned.event).inverse
        owners = {*change.tasks_added, *([change.row] if change.of == "tasks" and change.row else [])}
        refuse_reserved(transaction, layout, {*planned.back, planned.after.get("name") or ""}, owners=owners)
        for table, goes, comes in (
            ("tasks", change.tasks_removed, change.tasks_added),
            ("compositions", change.compositions_removed, change.compositions_added),
        ):
            mark_removed(transaction, table, goes)
            bring_back(transaction, table, comes)
        if change.of is not None:
            put_columns(transaction, change)
        log_event(transaction, "undo", planned.event.name, change, undoes=planned.event.id)
        read_snapshot(transaction, layout)  # what does not fit together is rolled back
    return planned


def _plan(view: View, objects: Objects) -> UndoResult:
    """What would be taken back, after it was checked that it can be.

    Raises:
        NotFoundError: There is nothing to take back, or files of it are gone.
        ExistsError: A name that would come back is in use.
        DamagedError: The history does not fit the rows, or a file is damaged.
    """
    event = next_to_undo(read_events(view))
    if event is None:
        raise NotFoundError("there is nothing to undo", commands=[Command("log")], unchanged=_UNCHANGED)
    change = change_of(event).inverse
    back = (
        *_names(view, event, "tasks", change.tasks_added, live=False),
        *_names(view, event, "compositions", change.compositions_added, live=False),
    )
    gone = (
        *_names(view, event, "tasks", change.tasks_removed, live=True),
        *_names(view, event, "compositions", change.compositions_removed, live=True),
    )
    before, after = dict(change.before), dict(change.after)
    if change.of is not None:
        _check_columns(view, event, change)
    _refuse_taken(view, [*back, *([name] if (name := after.get("name")) else [])], gone)
    _check_files(view, objects, event, change)
    return UndoResult(event, back, gone, before, after)


def _names(view: View, event: EventRecord, table: str, rows: Sequence[int], *, live: bool) -> Iterator[str]:
    """The names of rows, each of which must be in use or not, as the history says."""
    for number in rows:
        found = view.rows(table, **{NUMBER[table]: number})
        if not found or (found[0]["state"] != "removed") != live:
            raise _unfit(event)
        yield found[0]["name"]


def _check_columns(view: View, event: EventRecord, change: Change) -> None:
    allowed = {"name", "note", "tags"} | ({"first_name"} if change.of == "tasks" else set())
    if change.of not in NUMBER or not change.before.keys() == change.after.keys() <= allowed:
        raise _unfit(event)
    if not fits(change.of, change.after):
        raise _unfit(event)
    found = view.rows(change.of, **{NUMBER[change.of]: change.row})
    if not found or any(found[0][column] != value for column, value in change.before.items()):
        raise _unfit(event)


def _unfit(event: EventRecord) -> DamagedError:
    return DamagedError(
        f"bank.db: change {event.id} ({event.kind} {event.name[:80]!r}) does not fit what the bank holds",
        unchanged=_UNCHANGED,
    )


def _refuse_taken(view: View, names: Sequence[str], gone: Sequence[str]) -> None:
    """A name that comes back must be free."""
    for table in NUMBER:
        used = {row["name"] for row in view.rows(table) if row["state"] != "removed"}
        for name in names:
            if name in used.difference(gone):
                raise ExistsError(
                    f"{name!r} cannot come back: another one has the name",
                    commands=[Command("remove", name)],
                    unchanged=_UNCHANGED,
                )


def _check_files(view: View, objects: Objects, event: EventRecord, change: Change) -> None:
    """The files of what comes back, beside those in use, must be there and be what they were."""
    now = live_files(view)
    then = live_files(view, tasks=change.tasks_added, compositions=change.compositions_added)
    what = f"{event.kind} {event.name!r} of {event.created_at[:19]}Z cannot be undone"
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


def lost_with(view: View, digests: set[str]) -> tuple[EventRecord, ...]:
    """The changes that cannot be taken back any more once these adapters and blobs are gone, newest first.

    ``undo`` goes back one by one: the first one that cannot be taken back stops it.
    """
    left = left_to_undo(read_events(view))
    tasks: set[int] = set()
    compositions: set[int] = set()
    for number, event in enumerate(left):
        change = change_of(event).inverse
        tasks.update(change.tasks_added)
        compositions.update(change.compositions_added)
        if change.tasks_added or change.compositions_added:
            then = live_files(view, tasks=tasks, compositions=compositions)
            if digests & {*then.adapters, *then.blobs}:
                return tuple(left[number:])
    return ()
