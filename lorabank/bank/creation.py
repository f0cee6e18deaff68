"""Making a bank; ``bank.json`` comes last, so a bank that was not finished is not taken for one."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from lorabank import __version__
from lorabank.bank.catalog.base import Catalog, Transaction
from lorabank.bank.catalog.connections import choose_journal, connect_to_write
from lorabank.bank.catalog.definitions import APPLICATION_ID, schema_revision
from lorabank.bank.catalog.events import first_event
from lorabank.bank.catalog.judging import check_length
from lorabank.bank.catalog.migrating import driver_of, engine, migrate
from lorabank.bank.catalog.rows import row_of, sealed
from lorabank.bank.catalog.sqlite import SqliteTransaction
from lorabank.bank.catalog.times import now
from lorabank.bank.failures import reported
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.layout import DATABASE_FILES, ENTRIES, FORMAT, Layout
from lorabank.bank.objects.manifest import write_manifest
from lorabank.bank.objects.store import check_space
from lorabank.bank.objects.sync import sync_folder
from lorabank.core.commands import REPAIR
from lorabank.core.errors import DamagedError, ExistsError
from lorabank.core.records import BaseModelRecord


def create(layout: Layout, base: BaseModelRecord, catalog: Catalog | None = None) -> str:
    """Make a bank and return its id; see ``Bank.create``.

    Args:
        layout: Its folder.
        base: The base model.
        catalog: Where its rows go, which has none yet; None for a new database in the folder.
    """
    with reported(layout.root, unchanged="no bank was made"):
        check_length(layout.staging("0" * 32) / layout.database.name)  # where copies of it are made
        _refuse_other_content(layout.root)
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with bank_lock(layout.lock, exclusive=True):
            if layout.manifest.exists():
                raise ExistsError(f"there is a bank at {layout.root} already", unchanged="the bank was not changed")
            check_space(layout.root, 0)
            _clear_unfinished(layout)
            layout.make_folders()
            identifier, version, moment = os.urandom(16).hex(), __version__, now()
            bank = {"id": 1, "bank_id": identifier, "format": FORMAT, "created_at": moment, "created_with": version}
            base = base._replace(created_at=base.created_at or moment)
            first = {"bank": sealed("bank", bank), "base_model": row_of("base_model", base, id=1)}
            rows = first | {"events": first_event("init", moment)}
            if catalog is None:
                _create_database(layout, rows)
            else:
                with catalog.write() as transaction:
                    if transaction.last("bank") is not None:
                        raise ExistsError("the catalog holds a bank already", unchanged="no bank was made")
                    _insert(transaction, rows)
            content = {"format": FORMAT, "id": identifier, "created_with": version}
            write_manifest(layout, json.dumps(content, indent=2).encode() + b"\n")
    return identifier


def _create_database(layout: Layout, first_rows: dict[str, dict[str, Any]]) -> None:
    """Make ``bank.db`` with the head schema and one row in each of the given tables, in one transaction."""
    os.close(os.open(layout.database, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with closing(connect_to_write(layout.database, foreign_keys=False, new=True)) as connection:
        choose_journal(connection, layout.database)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    with engine(layout.database, new=True).begin() as alembic:
        migrate(alembic, layout.database)
        _insert(SqliteTransaction(driver_of(alembic)), first_rows)
    sync_folder(layout.root)


def _insert(transaction: Transaction, rows: dict[str, dict[str, Any]]) -> None:
    for table, row in rows.items():
        transaction.insert(table, row)


def _refuse_other_content(root: Path) -> None:
    """A folder with other things in it is somebody's; a link or a file is none of ours either."""
    if not os.path.lexists(root):
        return
    if not root.is_dir():
        raise ExistsError(f"{root} is not a folder", unchanged="nothing was changed")
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in ENTRIES)
    if others:
        raise ExistsError(
            f"{root} is not empty and not a bank: it holds {others[0][:80]!r}",
            hint="name another folder with --bank",
            unchanged="nothing was changed",
        )


def _clear_unfinished(layout: Layout) -> None:
    """Delete the database of a creation that was cut off: it has no tasks, or it was no such thing."""
    if os.path.lexists(layout.database) and _is_used(layout):
        raise DamagedError(
            f"bank {layout.root} holds tasks, but bank.json is missing",
            commands=[REPAIR],
            unchanged="nothing was changed",
        )
    for name in DATABASE_FILES:
        (layout.root / name).unlink(missing_ok=True)


def _is_used(layout: Layout) -> bool:
    """Whether a database may hold what somebody needs; what it has besides lorabank's tables is refused."""
    try:
        with closing(connect_to_write(layout.database, foreign_keys=False, new=True)) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                return False
            schema_revision(connection, layout.database)
            return connection.execute("SELECT 1 FROM tasks").fetchone() is not None
    except sqlite3.DatabaseError:
        return True
