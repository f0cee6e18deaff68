"""Deleting what nothing refers to."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorabank.bank.catalog.base import Catalog
from lorabank.bank.catalog.events import EventRecord
from lorabank.bank.catalog.reading import read_operations
from lorabank.bank.failures import busy, reported
from lorabank.bank.objects.base import Kept, Objects
from lorabank.bank.objects.filesystem import network_filesystem
from lorabank.bank.objects.folder import delete, size
from lorabank.bank.objects.layout import OPERATION_ID, Layout
from lorabank.bank.operations import RESUMABLE, holds_checkpoint
from lorabank.bank.upkeep.referenced import LiveFiles, changed_rows, live_files
from lorabank.bank.upkeep.undo import lost_with
from lorabank.core.errors import ConfigError, DamagedError
from lorabank.core.records import OperationRecord


@dataclass(frozen=True, slots=True)
class GcResult:
    """What was deleted, or would be.

    Attributes:
        paths: Below the bank folder.
        bytes: In all.
        lost: Changes that ``undo`` could take back until then, newest first.
    """

    paths: tuple[str, ...]
    bytes: int
    lost: tuple[EventRecord, ...] = ()


@dataclass(frozen=True)
class _Garbage:
    """What goes: objects, what dead operations left in the folder, and the changes that need one of them."""

    objects: list[Kept]
    paths: list[Path]
    lost: tuple[EventRecord, ...]

    def result(self, layout: Layout) -> GcResult:
        names = [*(kept.name for kept in self.objects), *(str(path.relative_to(layout.root)) for path in self.paths)]
        total = sum(kept.bytes for kept in self.objects) + sum(map(size, self.paths))
        return GcResult(tuple(sorted(names)), total, self.lost)


def gc(layout: Layout, catalog: Catalog, objects: Objects, *, dry_run: bool, grace_hours: float) -> GcResult:
    """Delete what nothing refers to; see ``Bank.gc``."""
    if dry_run:
        return _garbage(layout, catalog, objects, grace_hours).result(layout)
    if grace_hours <= 0 and (kind := network_filesystem(layout.root)) is not None:
        raise ConfigError(
            f"bank {layout.root} is on {kind}, a network file system, where a lock may not keep writers away",
            hint="leave --grace-hours out, or give a number above 0",
            unchanged="the bank was not changed",
        )
    # Every writer holds the lock shared from its first staged file to its commit, so nothing is on its way now.
    with catalog.lock(exclusive=True), reported(layout.root):
        layout.make_folders()
        garbage = _garbage(layout, catalog, objects, grace_hours)
        result = garbage.result(layout)
        for kept in garbage.objects:
            objects.delete(kept)
        for path in garbage.paths:
            delete(layout, path)
        return result


def _garbage(layout: Layout, catalog: Catalog, objects: Objects, grace_hours: float) -> _Garbage:
    with catalog.read() as view:
        operations = read_operations(view)
        for operation in operations:
            if operation.alive:
                raise busy(layout, operation)
        changed = changed_rows(view)
        if changed:  # a row that cannot be trusted may hide what it refers to
            table, key = changed[0]
            raise DamagedError(
                f"bank {layout.root}: row {key!r} of {table} is damaged: nothing is deleted",
                unchanged="the bank was not changed",
            )
        newest = time.time() - grace_hours * 3600
        unused = list(_unreferenced(objects, live_files(view)))
        doomed = [kept for kept in unused if kept.kind == "debris" or kept.modified <= newest]
        lost = lost_with(view, {kept.digest for kept in doomed if kept.kind != "debris"})
    return _Garbage(doomed, sorted(left_over(layout, operations)), lost)


def _unreferenced(objects: Objects, live: LiveFiles) -> Iterator[Kept]:
    needed = {"adapter": live.adapters.keys(), "blob": live.blobs.keys(), "debris": set[str]()}
    return (kept for kept in objects.list() if kept.digest not in needed[kept.kind])


def left_over(layout: Layout, operations: list[OperationRecord]) -> Iterator[Path]:
    """What dead operations left; checkpoints that can be resumed stay."""
    kept = {
        operation.id
        for operation in operations
        if operation.kind == RESUMABLE and holds_checkpoint(layout.work(operation.id))
    }
    for path in (layout.root / "staging").glob("*"):
        if re.fullmatch(OPERATION_ID, path.name):
            yield path
    for path in (layout.root / "work").glob("*"):
        if re.fullmatch(OPERATION_ID, path.name) and path.name not in kept:
            yield path
