"""Mending a bank, by steps that can lose nothing.

What dead operations left is swept. A damaged file goes to ``quarantine/``, which no command empties, and a good copy
is fetched by its digest where there is one. A task that still lacks a file it needs is set aside (state ``failed``),
so that all others can be used together; the next repair that finds the file lifts the mark.

All this is about a bank in a folder: its ``bank.json``, its database, its files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from lorabank.bank.catalog.base import Catalog, View
from lorabank.bank.catalog.connections import connect_to_write
from lorabank.bank.catalog.events import Change, log_event
from lorabank.bank.catalog.lineage import Lineages
from lorabank.bank.catalog.reading import read_operations
from lorabank.bank.catalog.rows import in_order, is_sealed
from lorabank.bank.catalog.sqlite import SqliteCatalog, SqliteView
from lorabank.bank.failures import busy, reported
from lorabank.bank.objects.base import StoredFile
from lorabank.bank.objects.folder import delete
from lorabank.bank.objects.layout import FORMAT, Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.objects.store import is_damaged, strangers
from lorabank.bank.objects.sync import sync_folder
from lorabank.bank.operations import RESUMABLE, drop, holds_checkpoint
from lorabank.bank.upkeep.copy_in import fetch_adapter, fetch_blob
from lorabank.bank.upkeep.gc import left_over
from lorabank.bank.upkeep.referenced import LiveFiles, live_files
from lorabank.bank.upkeep.verify import database_findings
from lorabank.core.commands import Command
from lorabank.core.errors import DamagedError, NotFoundError
from lorabank.core.records import OperationRecord


class RepairResult(NamedTuple):
    """What a repair did.

    Attributes:
        swept: What dead operations had left, below the bank folder.
        quarantined: Damaged files that were moved to ``quarantine/``.
        fetched: Files that a good copy was found of.
        set_aside: Tasks that nothing can answer with until their files are back.
        brought_back: Tasks that were set aside and can be used again.
    """

    swept: tuple[str, ...]
    quarantined: tuple[str, ...]
    fetched: tuple[str, ...]
    set_aside: tuple[str, ...]
    brought_back: tuple[str, ...]


def repair(layout: Layout, source: Path | None) -> RepairResult:
    """Mend what can be mended safely; see ``lorabank.api.repair``."""
    if source is not None and not source.is_dir():
        raise NotFoundError(
            f"no folder {source}", hint="a copy of the bank, or an exported adapter", unchanged="nothing was changed"
        )
    unchanged = "rows and good files were not changed"
    if not layout.database.is_file():
        read_manifest(layout)
    catalog = SqliteCatalog(layout)
    with catalog.lock(exclusive=True), reported(layout.root, unchanged=unchanged):
        layout.make_folders()
        _mend_manifest(layout)
        with catalog.read() as view:
            operations, live = _examine(view, layout)
        mending = _Mending(layout, source)
        swept = tuple(_sweep(layout, catalog, operations))
        for digest, (_, files) in live.adapters.items():
            mending.adapter(digest, files)
        for digest, file in live.blobs.items():
            mending.blob(digest, file)
        aside, back = _mark(catalog, mending.lost)
    return RepairResult(swept, tuple(mending.quarantined), tuple(mending.fetched), aside, back)


def _examine(view: View, layout: Layout) -> tuple[list[OperationRecord], LiveFiles]:
    """What is there by the database, which must itself be sound: what it says decides what is good."""
    operations = read_operations(view)
    for operation in operations:
        if operation.alive:
            raise busy(layout, operation)
    for finding in database_findings(view, layout, full=True):
        raise DamagedError(
            f"bank {layout.root}: {finding.subject}: {finding.message}: nothing was repaired",
            commands=[Command("restore", "BACKUP")],
            unchanged="the bank was not changed",
        )
    return operations, live_files(view)


def _mend_manifest(layout: Layout) -> None:
    """``bank.json`` says nothing that the database does not say: write it again when it is lost, broken or changed.

    One that names another bank stays: then nobody knows whose the files are.
    """
    found: dict[str, Any] | None = None
    broken: Exception | None = None
    try:
        found = read_manifest(layout)
    except (DamagedError, NotFoundError) as error:
        broken = error
    with closing(connect_to_write(layout.database)) as connection:
        row = SqliteView(connection).last("bank")
    sound = row is not None and is_sealed("bank", row) and row["format"] == FORMAT
    said = {"format": FORMAT, "id": row["bank_id"], "created_with": row["created_with"]} if row and sound else None
    if said is None and broken is not None:
        raise broken
    if said is None or found == said or (found is not None and found["id"] != said["id"]):
        return  # what is wrong with the database is found where it is examined
    from lorabank.bank.objects.manifest import write_manifest

    write_manifest(layout, json.dumps(said, indent=2).encode() + b"\n")


def _sweep(layout: Layout, catalog: Catalog, operations: list[OperationRecord]) -> Iterator[str]:
    for operation in operations:
        if operation.kind == RESUMABLE and holds_checkpoint(layout.work(operation.id)):
            continue
        drop(layout, catalog, operation.id)
        yield f"the reservation of {operation.kind} {operation.name}"
    for path in sorted(left_over(layout, operations)):
        delete(layout, path)
        yield str(path.relative_to(layout.root))


class _Mending:
    """The files of a bank, one after another.

    Attributes:
        quarantined, fetched: See ``RepairResult``.
        lost: Digests of adapters and blobs that are damaged and of which no good copy was found.
    """

    def __init__(self, layout: Layout, source: Path | None) -> None:
        self._layout = layout
        self._source = source
        self._quarantine: Path | None = None
        self.quarantined: list[str] = []
        self.fetched: list[str] = []
        self.lost: set[str] = set()

    def adapter(self, digest: str, files: list[StoredFile]) -> None:
        """Check one adapter and mend it."""
        folder = self._layout.adapter(digest)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            self._set_aside(folder)
        bad = [file for file in files if is_damaged(folder / file.name, file)]
        foreign = strangers(folder, files) if folder.is_dir() else []
        for name in (*(file.name for file in bad), *foreign):
            self._set_aside(folder / name)
        if not bad:
            return
        places = [folder]
        if self._source is not None:  # a copy of the bank, or an exported folder
            places += [Layout(self._source).adapter(digest), self._source]
        if fetch_adapter(self._layout, digest, files, places):
            self.lost.add(digest)
        else:
            self.fetched.append(f"adapters/{digest}")

    def blob(self, digest: str, file: StoredFile) -> None:
        """Check one blob and mend it."""
        path = self._layout.blob(digest)
        if not is_damaged(path, file):
            return
        self._set_aside(path)
        if fetch_blob(self._layout, digest, file, [self._source] if self._source is not None else []):
            self.lost.add(digest)
        else:
            self.fetched.append(f"blobs/{digest[:2]}/{digest}")

    def _set_aside(self, path: Path) -> None:
        if not os.path.lexists(path):
            return
        if self._quarantine is None:
            self._quarantine = self._layout.quarantine() / os.urandom(8).hex()
            self._quarantine.mkdir(mode=0o700)
        name = str(path.relative_to(self._layout.root))
        os.rename(path, self._quarantine / f"{len(self.quarantined):04d}-{path.name}")
        sync_folder(self._quarantine)
        sync_folder(path.parent)
        self.quarantined.append(name)


def _mark(catalog: Catalog, lost: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Set tasks aside that need what is lost, and bring those back that lack nothing."""
    with catalog.read() as view:
        tasks = in_order(view.rows("tasks"), "position")
        broken = {position for position, digest in _needs(view) if digest in lost} if lost else set()
    aside = [row for row in tasks if row["state"] == "ready" and row["position"] in broken]
    back = [row for row in tasks if row["state"] == "failed" and row["position"] not in broken]
    if aside or back:
        with catalog.write() as transaction:
            for rows, state in ((aside, "failed"), (back, "ready")):
                for row in rows:
                    transaction.update("tasks", {"position": row["position"]}, state=state)
            added, removed = (tuple(row["position"] for row in rows) for rows in (back, aside))
            log_event(transaction, "repair", "", Change(tasks_added=added, tasks_removed=removed))
    return tuple(row["name"] for row in aside), tuple(row["name"] for row in back)


def _needs(view: View) -> Iterator[tuple[int, str | None]]:
    """Positions of tasks, and a digest without which each cannot answer. Kept rows are not among them."""
    digests = {row["id"]: row["digest"] for row in view.rows("adapters")}
    yield from digests.items()
    yield from ((number, digest) for number, lineage in Lineages(view, digests).items() for digest in lineage)
    yield from ((row["adapter"], row["blob"]) for row in view.rows("adapter_objects"))
    yield from ((row["position"], row["statistics"]) for row in view.rows("tasks"))
