"""Alembic's entry point: runs the revisions on the connection that lorabank hands over.

Developers who call ``alembic`` themselves name a database file: ``alembic -x database=bank/bank.db ...``.
"""

from __future__ import annotations

from pathlib import Path

from alembic import context
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from lorabank.bank.catalog.schema import metadata


def run(connection: Connection) -> None:
    """Run on a connection; the transaction around it is the caller's."""
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def run_for_a_developer() -> None:
    """Open the database named on the command line."""
    database = context.get_x_argument(as_dictionary=True).get("database")
    if not database:
        raise SystemExit("name the database: alembic -x database=bank/bank.db ... (users: lorabank db upgrade)")
    engine = create_engine(f"sqlite:///{Path(str(database)).absolute()}", poolclass=NullPool)
    with engine.connect() as connection:
        run(connection)


handed_over = context.config.attributes.get("connection")
if handed_over is None:
    run_for_a_developer()
else:
    run(handed_over)
