"""Checking a bank: that every row is what was written, and that the files it refers to are there and unchanged."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from lorabank.bank.layout import Layout
from lorabank.bank.live import LiveFiles, changed_rows, live_files
from lorabank.bank.locks import bank_lock
from lorabank.bank.reading import read_evaluations, read_manifest, read_operations, read_snapshot, reading
from lorabank.bank.store import adapter_digest, adapter_problems, blob_problems, content_problems, strangers
from lorabank.core.errors import DamagedError
from lorabank.core.records import Finding

_ADAPTER_HINT = "copy the folder back from another copy of the bank, or: lorabank remove {task} --cascade"
_BLOB_HINT = "copy the file back from another copy of the bank"
_MANIFEST_HINT = "write into bank.json what bank.db says"
_DATABASE_HINT = "go back to a copy of the bank, or of bank.db in its folder backups"


def verify(layout: Layout, *, full: bool) -> list[Finding]:
    """Check a bank; see ``Bank.verify``."""
    with ExitStack() as lock:
        with suppress(OSError):  # on a read-only medium there is nothing to lock against
            lock.enter_context(bank_lock(layout.lock, exclusive=False))
        try:
            with reading(layout) as connection:
                findings = [*_database(connection, layout, full)]
                if findings:
                    return findings
                live = live_files(connection)
        except DamagedError as error:
            return [Finding("database", "bank", error.message, _DATABASE_HINT)]
        return [*_adapters(layout, live, full), *_blobs(layout, live, full)]


def _database(connection: sqlite3.Connection, layout: Layout, full: bool) -> Iterator[Finding]:
    check = "integrity_check" if full else "quick_check"
    for (verdict,) in connection.execute(f"PRAGMA {check}").fetchall():
        if verdict != "ok":
            yield Finding("database", "bank.db", str(verdict)[:500], _DATABASE_HINT)
    for table, row, target, _ in connection.execute("PRAGMA foreign_key_check").fetchall():
        message = f"row {row} of {table} refers to a row of {target} that is not there"
        yield Finding("database", table, message, _DATABASE_HINT)
    for table, key in changed_rows(connection):
        yield Finding("row", f"{table} {key!r}", "its columns no longer match their digest", _DATABASE_HINT)
    try:
        read_snapshot(connection, layout)
        read_evaluations(connection, layout)
        read_operations(connection, layout)
        said = dict(connection.execute("SELECT format, bank_id AS id, created_with FROM bank").fetchone())
        if read_manifest(layout) != said:
            yield Finding(
                "database", "bank.json", f"it differs from what bank.db says: {json.dumps(said)}", _MANIFEST_HINT
            )
    except DamagedError as error:
        yield Finding("database", "bank.db", error.message, _DATABASE_HINT)


def _adapters(layout: Layout, live: LiveFiles, full: bool) -> Iterator[Finding]:
    for digest, (task, files) in live.adapters.items():
        subject, hint = f"adapter {digest[:12]} of task {task}", _ADAPTER_HINT.format(task=task)
        if adapter_digest(files) != digest:
            yield Finding("row", subject, "the recorded files do not make up the adapter's digest", _DATABASE_HINT)
            continue
        folder = layout.adapter(digest)
        problems = adapter_problems(folder, files, full=full)
        if not problems:
            problems = [f"{name[:80]!r} does not belong to the adapter" for name in strangers(folder, files)]
        if full and not problems:
            problems = [problem for file in files for problem in content_problems(folder / file.name)]
        yield from (Finding("adapter", subject, problem, hint) for problem in problems)


def _blobs(layout: Layout, live: LiveFiles, full: bool) -> Iterator[Finding]:
    for digest, file in live.blobs.items():
        path = layout.blob(digest)
        problems = blob_problems(path, file, full=full) or (content_problems(path) if full else [])
        yield from (Finding("blob", f"blob {digest[:12]}", problem, _BLOB_HINT) for problem in problems)
