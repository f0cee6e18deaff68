"""Writing the database: connections, transactions, migrations and creation.

SQLAlchemy and Alembic are imported inside functions: reading a bank must not pay for them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabank.bank.catalog.connections import BUSY_SECONDS, connect_to_write
from lorabank.bank.catalog.definitions import APPLICATION_ID, REVISIONS, newer_schema, schema_revision
from lorabank.bank.failures import reported
from lorabank.bank.locks import LEASE, host_name
from lorabank.bank.objects.filesystem import network_filesystem
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.sync import sync_folder
from lorabank.core.commands import Command
from lorabank.core.errors import BusyError, DamagedError, IncompatibleError
from lorabank.core.records import OperationRecord

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection, Engine


@contextmanager
def writing(layout: Layout, *, unchanged: str = "the bank was not changed") -> Iterator[Connection]:
    """One ``BEGIN IMMEDIATE`` transaction: it commits at the end of the block, an exception rolls it back.

    Raises:
        BusyError: Another process kept the database locked.
        StorageError: No space, or an input/output error.
        IncompatibleError: The schema was upgraded meanwhile by another version.
    """
    with reported(layout.root, unchanged=unchanged), engine(layout.database).begin() as connection:
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if revision != REVISIONS[-1]:
            raise newer_schema(layout.database, str(revision))
        yield connection


def create_database(layout: Layout, first_rows: dict[str, dict[str, Any]]) -> None:
    """Make ``bank.db`` with the head schema and one row in each of the given tables.

    The caller holds the exclusive lock.
    """
    os.close(os.open(layout.database, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    with closing(connect(layout.database, foreign_keys=False, new=True)) as connection:
        _choose_journal(connection, layout.database)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    with engine(layout.database, foreign_keys=False, new=True).begin() as connection:
        migrate(connection, layout.database)
        from lorabank.bank.catalog.schema import metadata

        for table, row in first_rows.items():
            connection.execute(metadata.tables[table].insert(), row)
    sync_folder(layout.root)


def alembic_config() -> Config:
    """Alembic's settings, made in code so that an installed wheel needs no file beside the package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    return config


def script_location() -> Path:
    """The folder of the migrations package."""
    return Path(str(resources.files("lorabank_migrations")))


def migrate(connection: Connection, database: Path) -> None:
    """Run all missing revisions in the caller's transaction and check what they left."""
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise DamagedError(f"after the migrations {len(broken)} rows refer to rows that are not there")
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    if (revision := schema_revision(driver, database)) != REVISIONS[-1]:
        raise IncompatibleError(f"the migrations ended with schema {revision}, not with {REVISIONS[-1]}")


def engine(database: Path, *, foreign_keys: bool = True, new: bool = False) -> Engine:
    """An engine whose every transaction is ``BEGIN IMMEDIATE``; no pool, so that it is safe after a fork."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    made = create_engine("sqlite://", creator=lambda: _for_writing(database, foreign_keys, new), poolclass=NullPool)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return made


def _for_writing(database: Path, foreign_keys: bool, new: bool) -> sqlite3.Connection:
    connection = connect(database, foreign_keys, new=new)
    try:
        _choose_journal(connection, database)
    except Exception:
        connection.close()
        raise
    return connection


def _choose_journal(connection: sqlite3.Connection, database: Path) -> None:
    """WAL on a local disk, a rollback journal on a network file system; a bank that was moved follows its place."""
    wanted = "wal" if network_filesystem(database) is None else "delete"
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        connection.execute("PRAGMA busy_timeout = 1000")
        with suppress(sqlite3.OperationalError):  # beside a reader it cannot change now: the next writer tries again
            connection.execute(f"PRAGMA journal_mode = {wanted}")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")


def connect(database: Path, foreign_keys: bool, *, new: bool = False) -> sqlite3.Connection:
    """A driver connection with the settings that writing needs; see ``connect_to_write``."""
    settings = ("PRAGMA synchronous = FULL", f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
    connection = connect_to_write(database, settings, new=new)
    if connection.execute("PRAGMA foreign_keys").fetchone()[0] != int(foreign_keys):
        connection.close()
        raise sqlite3.DatabaseError("this build of SQLite cannot enforce foreign keys")
    return connection


def busy(layout: Layout, operation: OperationRecord) -> BusyError:
    """The refusal while another process works on the bank, with what ends it when the process is dead."""
    hint, commands = "wait for it to end; doctor shows it", [Command("doctor")]
    if operation.host != host_name():
        hint = (
            f"wait for it to end. It was seen alive at {operation.seen_at[:19]}Z; when that is "
            f"{LEASE.total_seconds() / 60:.0f} minutes ago it counts as dead, and can be dropped"
        )
        commands = [Command("doctor", "--repair")]
    process = f"process {operation.pid} on {operation.host}"
    return BusyError(
        f"bank {layout.root}: {process} is doing {operation.kind} {operation.name!r}",
        hint=hint,
        commands=commands,
        unchanged="the bank was not changed",
    )
