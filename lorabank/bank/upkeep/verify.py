"""Checking a bank: that every row is what was written, and that the files it refers to are there and unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

from lorabank.bank.catalog.base import Catalog, View
from lorabank.bank.catalog.reading import read_evaluations, read_events, read_operations, read_snapshot
from lorabank.bank.catalog.rows import in_order
from lorabank.bank.objects.base import Objects, adapter_digest
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.upkeep.referenced import LiveFiles, changed_rows, live_files
from lorabank.core.commands import REPAIR, Command
from lorabank.core.errors import ConfigError, DamagedError
from lorabank.core.records import Finding

_FETCH = Command("doctor", "--repair", "--from", "COPY")
_ADAPTER = "fetch good files from a copy of the bank, or remove the task"
_BLOB_CURE = "fetch a good file from a copy of the bank", (_FETCH,)
_MANIFEST_CURE = "rewrite bank.json from bank.db", (REPAIR,)
_DATABASE_CURE = (
    "restore a file of the bank's folder backups, or a copy of the bank",
    (Command("restore", "BACKUP"),),
)

Deep = Callable[[str], bool]
"""Whether the files under this digest are read."""


def verify(
    layout: Layout, catalog: Catalog, objects: Objects, *, full: bool, part: tuple[int, int] | None = None
) -> list[Finding]:
    """Check a bank; see ``Bank.verify``."""
    deep = _depth(full, part)
    with ExitStack() as lock:
        with suppress(OSError):  # on a read-only medium there is nothing to lock against
            lock.enter_context(catalog.lock(exclusive=False))
        try:
            with catalog.read() as view:
                findings = [*database_findings(view, layout, full or part is not None)]
                if findings:
                    return findings
                live, aside = live_files(view), _set_aside(view)
        except DamagedError as error:
            return [Finding("database", "bank", error.message, *_DATABASE_CURE)]
        return [*aside, *_adapters(objects, live, deep), *_blobs(objects, live, deep)]


def _depth(full: bool, part: tuple[int, int] | None) -> Deep:
    """A digest belongs to one of ``count`` parts, always the same: digests are spread evenly."""
    if part is None or full:
        return lambda _: full
    number, count = part
    if not 1 <= number <= count:
        raise ConfigError(
            f"part {number} of {count}: there is no such part",
            hint="for example the first of five: 1/5",
            unchanged="nothing was checked",
        )
    return lambda digest: int(digest, 16) % count == number - 1


def _set_aside(view: View) -> list[Finding]:
    """Tasks that a repair marked as damaged: it also lifts the mark, once the files are back."""
    names = [row["name"] for row in in_order(view.rows("tasks", state="failed"), "position")]
    return [Finding("task", f"task {name}", "it is set aside as damaged", *_adapter_cure(name)) for name in names]


def database_findings(view: View, layout: Layout, full: bool) -> Iterator[Finding]:
    """What is wrong with the catalog itself: what it finds, and rows that are not what was written."""
    for subject, problem in view.problems(full=full):
        yield Finding("database", subject, problem, *_DATABASE_CURE)
    for table, key in changed_rows(view):
        yield Finding("row", f"{table} {key!r}", "its columns no longer match their digest", *_DATABASE_CURE)
    try:
        read_snapshot(view, layout)
        read_evaluations(view)
        read_operations(view)
        read_events(view)
        (bank,) = view.rows("bank")
        said = {"format": bank["format"], "id": bank["bank_id"], "created_with": bank["created_with"]}
        if read_manifest(layout) != said:
            yield Finding(
                "database", "bank.json", f"it differs from bank.db, which says: {json.dumps(said)}", *_MANIFEST_CURE
            )
    except DamagedError as error:
        yield Finding("database", "bank.db", error.message, *_DATABASE_CURE)


def _adapter_cure(task: str) -> tuple[str, tuple[Command, ...]]:
    return _ADAPTER, (_FETCH, Command("remove", task, "--cascade"))


def _adapters(objects: Objects, live: LiveFiles, deep: Deep) -> Iterator[Finding]:
    for digest, (task, files) in live.adapters.items():
        subject = f"adapter {digest[:12]} of task {task}"
        if adapter_digest(files) != digest:
            yield Finding("row", subject, "the recorded files do not match the adapter's digest", *_DATABASE_CURE)
            continue
        problems = objects.adapter_problems(digest, files, full=deep(digest), strict=True)
        yield from (Finding("adapter", subject, problem, *_adapter_cure(task)) for problem in problems)


def _blobs(objects: Objects, live: LiveFiles, deep: Deep) -> Iterator[Finding]:
    for digest, file in live.blobs.items():
        problems = objects.blob_problems(file, full=deep(digest), strict=True)
        yield from (Finding("blob", f"blob {digest[:12]}", problem, *_BLOB_CURE) for problem in problems)
