"""The rows of a bank in ``bank.db``, an SQLite database in its folder; see `lorabank.bank.catalog.base.Catalog`.

What writing needs is imported when it is called: `lorabank list` pays for reading alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

from lorabank.bank.catalog.base import Row, RowRefused
from lorabank.bank.catalog.columns import TABLES
from lorabank.bank.catalog.connections import connect_to_read, open_to_write
from lorabank.bank.catalog.definitions import REVISIONS, defined, newer_schema, read_revision
from lorabank.bank.failures import reported
from lorabank.bank.objects.layout import Layout
from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError


class SqliteView:
    """The rows as a connection sees them, in whose transaction it is.

    A copy may have an older schema: tables that it lacks are empty here.

    Attributes:
        revision: Of the schema.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.revision = read_revision(connection)

    def rows(self, table: str, /, **where: Any) -> list[Row]:
        """The rows with these values, by their row ids."""
        condition, values = _condition(where)
        return self._select(table, f"{condition} ORDER BY rowid", values)

    def columns(self, table: str, /, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of every row, by row id."""
        assert table in TABLES
        if table not in defined(self.revision):
            return []
        chosen = ", ".join(f"[{name}]" for name in names)
        return self._connection.execute(f"SELECT {chosen} FROM {table} ORDER BY rowid").fetchall()

    def last(self, table: str, /) -> Row | None:
        """The row with the highest row id."""
        return next(iter(self._select(table, "ORDER BY rowid DESC LIMIT 1", ())), None)

    def _select(self, table: str, how: str, values: tuple[Any, ...]) -> list[Row]:
        assert table in TABLES
        if table not in defined(self.revision):
            return []
        cursor = self._connection.execute(f"SELECT * FROM {table} {how}", values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def problems(self, *, full: bool) -> Iterator[tuple[str, str]]:
        """What SQLite says about its pages and indexes, and about references."""
        check = "integrity_check" if full else "quick_check"
        for (verdict,) in self._connection.execute(f"PRAGMA {check}").fetchall():
            if verdict != "ok":
                yield "bank.db", str(verdict)[:500]
        for table, row, target, _ in self._connection.execute("PRAGMA foreign_key_check").fetchall():
            yield table, f"row {row} of {table} refers to a row of {target} that does not exist"


class SqliteTransaction(SqliteView):
    """Changes by a connection, in whose transaction they are."""

    def insert(self, table: str, row: Row, /) -> None:
        """Insert a row."""
        names = ", ".join(f"[{column}]" for column in row)
        marks = ", ".join("?" * len(row))
        self._change(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))

    def update(self, table: str, where: Row, /, **columns: Any) -> int:
        """Change columns of rows."""
        condition, values = _condition(where)
        sets = ", ".join(f"[{column}] = ?" for column in columns)
        return self._change(f"UPDATE {table} SET {sets} {condition}", (*columns.values(), *values))

    def delete(self, table: str, where: Row, /) -> int:
        """Delete rows."""
        condition, values = _condition(where)
        return self._change(f"DELETE FROM {table} {condition}", values)

    def _change(self, statement: str, values: tuple[Any, ...]) -> int:
        try:
            return self._connection.execute(statement, values).rowcount
        except sqlite3.IntegrityError as error:
            raise RowRefused(str(error)) from error


def _condition(where: Row) -> tuple[str, tuple[Any, ...]]:
    """Names in brackets are names: one in double quotes that SQLite does not know is a text to it."""
    conditions: list[str] = []
    values: list[Any] = []
    for column, value in where.items():
        several = isinstance(value, tuple)
        conditions.append(f"[{column}] IN ({', '.join('?' * len(value))})" if several else f"[{column}] IS ?")
        values += value if several else (value,)
    return f"WHERE {' AND '.join(conditions)}" if conditions else "", tuple(values)


class SqliteCatalog:
    """The rows of the bank in a folder.

    Args:
        layout: Where the bank is.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @contextmanager
    def read(self) -> Iterator[SqliteView]:
        """A read transaction on a database whose schema was checked."""
        with reported(self._layout.root), closing(connect_to_read(self._layout.database)) as connection:
            view = SqliteView(connection)
            if view.revision != REVISIONS[-1]:
                raise self._other_schema(view.revision)
            yield view

    @contextmanager
    def write(self, *, patience: float | None = None) -> Iterator[SqliteTransaction]:
        """A ``BEGIN IMMEDIATE`` transaction."""
        with (
            reported(self._layout.root, unchanged="the bank was not changed"),
            closing(open_to_write(self._layout.database)) as connection,  # which rolls back what was not committed
        ):
            if patience is not None:
                connection.execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
            connection.execute("BEGIN IMMEDIATE")
            transaction = SqliteTransaction(connection)
            if transaction.revision != REVISIONS[-1]:  # upgraded by another version since it was opened
                raise newer_schema(self._layout.database, transaction.revision)
            yield transaction
            connection.commit()

    def lock(self, *, exclusive: bool, patience: float | None = None) -> AbstractContextManager[None]:
        """The lock file of the folder."""
        from lorabank.bank.locks import bank_lock

        limit = {} if patience is None else {"timeout": patience}
        return bank_lock(self._layout.lock, exclusive=exclusive, **limit)

    def _other_schema(self, revision: str) -> IncompatibleError:
        if revision not in REVISIONS:
            return newer_schema(self._layout.database, revision)
        return IncompatibleError(
            f"bank {self._layout.root} has schema {revision}, this lorabank needs {REVISIONS[-1]}",
            commands=[Command("db", "upgrade")],
            unchanged="the bank was not changed",
        )
