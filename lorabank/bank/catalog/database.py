"""Writing the database: connections and migrations.

SQLAlchemy and Alembic are imported inside functions: reading a bank must not pay for them.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from lorabank.bank.catalog.connections import BUSY_SECONDS, connect_to_write
from lorabank.bank.catalog.definitions import REVISIONS, schema_revision
from lorabank.bank.objects.filesystem import network_filesystem
from lorabank.core.errors import DamagedError, IncompatibleError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection, Engine


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
    if (revision := schema_revision(driver_of(connection), database)) != REVISIONS[-1]:
        raise IncompatibleError(f"the migrations ended with schema {revision}, not with {REVISIONS[-1]}")


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The driver's connection under SQLAlchemy's, in the same transaction."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def engine(database: Path, *, new: bool = False) -> Engine:
    """An engine for migrations: every transaction is ``BEGIN IMMEDIATE``, and tables can be made anew in it."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    def creator() -> sqlite3.Connection:
        return open_to_write(database, foreign_keys=False, new=new)

    made = create_engine("sqlite://", creator=creator, poolclass=NullPool)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return made


def open_to_write(database: Path, *, foreign_keys: bool = True, new: bool = False) -> sqlite3.Connection:
    """A driver connection as of ``connect``, with the journal that suits the place."""
    connection = connect(database, foreign_keys, new=new)
    try:
        choose_journal(connection, database)
    except Exception:
        connection.close()
        raise
    return connection


def choose_journal(connection: sqlite3.Connection, database: Path) -> None:
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
