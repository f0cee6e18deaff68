"""CSV: a header line, commas, double quotes (RFC 4180), UTF-8; a quoted cell may hold line breaks.

Python's reader takes a record of any length and a cell of 131,072 characters. Here a record has the limit that a
line of JSON has, and a cell has none of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_LINE
from lorabank.data.formats import LINE_FEEDS, UNCHANGED, Table, bad_row, missing_column, too_long


class Csv:
    """A CSV file whose first line names the columns; every cell is a string, blank lines are skipped.

    Every method raises DataError where the file is not that, with the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> tuple[str, ...]:
        """The cells of the header."""
        with _records(self.path) as records:
            return tuple(records.next() or ())

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of these columns, each row with the line on which it starts; None for an optional one not there.

        Raises:
            DataError: A column is missing or stands twice, quotes are broken or a row has another number of cells.
        """
        with _records(self.path) as records:
            return self._table(records, columns, optional)

    def _table(self, records: _Records, columns: Sequence[str], optional: Sequence[str]) -> Table:
        table = Table(str(self.path), (*columns, *optional))
        header = records.next()
        if header is None:
            return table
        wanted = [column for column in table.columns if column in columns or column in header]
        indices = dict(zip(wanted, _indices(self.path, header, wanted), strict=True))
        places = [indices.get(column) for column in table.columns]
        while (cells := records.next()) is not None:
            if not cells:
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells, but the header names {len(header)} columns"
                raise bad_row(self.path, f"line {records.line}", problem)
            table.add(records.line, tuple(None if place is None else cells[place] for place in places))
        return table


class _Records:
    """The records of an open file one by one, each with a limit on its bytes.

    Attributes:
        line: Where the last record starts, from 1.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.line = 0
        self._file = file
        self._number = 0
        self._left = 0
        self._lines = self._decoded()
        self._reader = csv.reader(self._lines, strict=True)

    def next(self) -> list[str] | None:
        """The next record, an empty one for a blank line, or None at the end of the file."""
        self.line = self._number + 1
        self._left = MAX_LINE
        try:
            return next(self._reader, None)
        except csv.Error as error:
            returns = "new-line character" in str(error)
            problem = "a carriage return stands alone" if returns else f"not CSV: {error}"
            raise bad_row(self.path, f"line {self.line}", problem, hint=LINE_FEEDS if returns else None) from error

    def _decoded(self) -> Generator[str]:
        """Line by line, so that a byte that is not UTF-8 can be located."""
        while raw := self._file.readline(self._left + 1):
            self._number += 1
            self._left -= len(raw)
            if self._left < 0:
                raise too_long(self.path, f"line {self.line}", raw)
            try:
                yield raw.decode("utf-8-sig" if self._number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"line {self._number}, byte {error.start + 1}"
                raise bad_row(self.path, where, "not UTF-8", hint="save the file as UTF-8") from error


@contextmanager
def _records(path: Path) -> Iterator[_Records]:
    """Open a file; the limit that Python's reader puts on a cell, for the whole process, is set back."""
    limit = csv.field_size_limit(MAX_LINE)
    try:
        with path.open("rb") as file:
            yield _Records(path, file)
    finally:
        csv.field_size_limit(limit)


def _indices(path: Path, header: list[str], columns: Sequence[str]) -> list[int]:
    for column in columns:
        if column not in header:
            error = missing_column(path, column, header)
            error.hint = f"{error.hint} (the first line must hold the column names, separated by commas)"
            raise error
        if header.count(column) > 1:
            raise DataError(f"{str(path)!r}: the column {column!r} stands twice in the header", unchanged=UNCHANGED)
    return [header.index(column) for column in columns]
