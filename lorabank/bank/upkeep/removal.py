"""Soft removal: a row becomes a tombstone, files go later with ``gc``."""

from __future__ import annotations

from lorabank.bank.catalog.base import Catalog
from lorabank.bank.catalog.columns import NUMBER
from lorabank.bank.catalog.commits import in_use, mark_removed
from lorabank.bank.catalog.events import Change, log_event
from lorabank.bank.catalog.reading import read_snapshot
from lorabank.bank.objects.layout import Layout
from lorabank.bank.operations import refuse_live
from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import LIST, Command
from lorabank.core.errors import ExistsError, NotFoundError


def remove(layout: Layout, catalog: Catalog, name: str, *, cascade: bool, dry_run: bool) -> tuple[str, ...]:
    """Remove a task or composition; see ``Bank.remove``."""
    if dry_run:
        with catalog.read() as view:
            return _affected(read_snapshot(view, layout), name, cascade)
    with catalog.lock(exclusive=False), catalog.write() as transaction:
        refuse_live(transaction, layout)
        names = _affected(read_snapshot(transaction, layout), name, cascade)
        gone = [
            mark_removed(
                transaction, table, [row[number] for one in names if (row := in_use(transaction, table, one))]
            )
            for table, number in NUMBER.items()
        ]
        log_event(transaction, "remove", name, Change(tasks_removed=gone[0], compositions_removed=gone[1]))
    return names


def _affected(snapshot: Snapshot, name: str, cascade: bool) -> tuple[str, ...]:
    """The names that go: the one asked for, and with ``cascade`` the compositions that need it."""
    compositions = (*snapshot.compositions, *snapshot.damaged_compositions)
    if any(composition.name == name for composition in compositions):
        return (name,)
    if all(task.name != name for task in (*snapshot.tasks, *snapshot.damaged_tasks)):
        raise unknown(snapshot, name)
    needed_by = tuple(composition.name for composition in compositions if name in composition.members)
    if needed_by and not cascade:
        raise ExistsError(
            f"task {name!r} is needed by the composition{'s' * (len(needed_by) > 1)} {', '.join(needed_by)}",
            commands=[Command("remove", name, "--cascade")],
            unchanged="the bank was not changed",
        )
    return (name, *needed_by)


def unknown(snapshot: Snapshot, name: str) -> NotFoundError:
    """The refusal of a name that nothing in the bank has."""
    from lorabank.core.settings import nearest

    known = [task.name for task in snapshot.tasks] + [composition.name for composition in snapshot.compositions]
    return NotFoundError(
        f"no task or composition {name[:80]!r}{nearest(name, known)}",
        commands=[LIST],
        unchanged="the bank was not changed",
    )
