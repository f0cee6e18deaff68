"""The migrations of the database, run by Alembic.

SQLAlchemy and Alembic are imported inside functions: what works on a bank of the present schema must not pay for them.
"""

from __future__ import annotations

import sqlite3
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from lorabank.bank.catalog.connections import open_to_write
from lorabank.bank.catalog.definitions import REVISIONS, schema_revision
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
        raise DamagedError(f"after the migrations {len(broken)} rows refer to rows that do not exist")
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
