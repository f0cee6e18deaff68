"""Rows that lie in no database: a second implementation, so that the contract judges the port and not SQLite."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lorabank.bank.catalog.base import Row, RowRefused
from lorabank.bank.catalog.columns import TABLES, Described
from lorabank.core.errors import BusyError

Tables = dict[str, tuple[Row, ...]]


class Kept:
    """What several catalogs look at: the committed rows, who writes, and who holds the lock."""

    def __init__(self) -> None:
        self.tables: Tables = dict.fromkeys(TABLES, ())
        self.writer = threading.Lock()
        self.turn = threading.Condition()
        self.holders: list[bool] = []


class MemoryView:
    def __init__(self, tables: Tables) -> None:
        self._tables = dict(tables)

    def rows(self, table: str, /, **where: Any) -> list[Row]:
        return [dict(row) for row in self._tables[table] if _fits(row, where)]

    def columns(self, table: str, /, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(row[name] for name in names) for row in self._tables[table]]

    def last(self, table: str, /) -> Row | None:
        return next((dict(row) for row in reversed(self._tables[table])), None)

    def problems(self, *, full: bool) -> Iterator[tuple[str, str]]:
        try:
            judge(self._tables)
        except RowRefused as error:
            yield "rows", str(error)


class MemoryTransaction(MemoryView):
    def insert(self, table: str, row: Row, /) -> None:
        known = [name for name, column in TABLES[table].columns.items() if column.type]
        assert row.keys() <= {*known, "row_digest"}
        self._tables[table] += ({name: row.get(name) for name in (*known, "row_digest")},)

    def update(self, table: str, where: Row, /, **columns: Any) -> int:
        found = [_fits(row, where) for row in self._tables[table]]
        pairs = zip(self._tables[table], found, strict=True)
        self._tables[table] = tuple({**row, **columns} if fits else row for row, fits in pairs)
        return sum(found)

    def delete(self, table: str, where: Row, /) -> int:
        before = self._tables[table]
        self._tables[table] = tuple(row for row in before if not _fits(row, where))
        return len(before) - len(self._tables[table])

    def committed(self) -> Tables:
        judge(self._tables)
        return self._tables


class MemoryCatalog:
    """Rows in a dictionary; a commit puts another dictionary in its place."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    @contextmanager
    def read(self) -> Iterator[MemoryView]:
        yield MemoryView(self._kept.tables)

    @contextmanager
    def write(self, *, patience: float | None = None) -> Iterator[MemoryTransaction]:
        if not self._kept.writer.acquire(timeout=30.0 if patience is None else patience):
            raise BusyError("another thread is writing")
        try:
            transaction = MemoryTransaction(self._kept.tables)
            yield transaction
            self._kept.tables = transaction.committed()
        finally:
            self._kept.writer.release()

    @contextmanager
    def lock(self, *, exclusive: bool, patience: float | None = None) -> Iterator[None]:
        turn, holders = self._kept.turn, self._kept.holders
        limit = 30.0 if patience is None else patience
        with turn:
            if not turn.wait_for(lambda: not (any(holders) or (exclusive and holders)), limit):
                raise BusyError("another thread holds the lock")
            holders.append(exclusive)
        try:
            yield
        finally:
            with turn:
                holders.remove(exclusive)
                turn.notify_all()


def judge(tables: Tables) -> None:
    """Compare all rows with the description of their tables."""
    for name, described in TABLES.items():
        rows = tables[name]
        for row in rows:
            _judge_row(tables, name, described, row)
        live = [row for row in rows if described.live and row["state"] != "removed"]
        key = [column for column, one in described.columns.items() if one.key]
        for group, columns in ((rows, key), (rows, described.unique), (live, ["name"])):
            _judge_unique(name, group, columns)


def _judge_row(tables: Tables, table: str, described: Described, row: Row) -> None:
    for name, column in described.columns.items():
        if column.type is None:
            continue
        value = row[name]
        if value is None:
            if not column.empty:
                raise RowRefused(f"{table}.{name} is missing")
            continue
        if column.words and value not in column.words:
            raise RowRefused(f"{table}.{name} cannot be {value!r}")
        if column.refers:
            other, _, key = column.refers.partition(".")
            if all(one[key] != value for one in tables[other]):
                raise RowRefused(f"{table}.{name} refers to {value!r}, which is not there")
    for rule in described.rules.values():
        name, sign, number = re.fullmatch(r"(\w+) ([=>]) (\d+)", rule).groups()  # type: ignore[union-attr]
        if not (row[name] == int(number) if sign == "=" else row[name] > int(number)):
            raise RowRefused(f"{table}: not {rule}")


def _judge_unique(table: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    values = [tuple(row[column] for column in columns) for row in rows]
    whole = [one for one in values if columns and None not in one]
    if len(set(whole)) < len(whole):
        raise RowRefused(f"{table}: twice the same {', '.join(columns)}")


def _fits(row: Row, where: Row) -> bool:
    return all(row[column] in (value if isinstance(value, tuple) else (value,)) for column, value in where.items())
