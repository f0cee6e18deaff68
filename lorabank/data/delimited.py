"""CSV: a header line, commas, double quotes (RFC 4180), UTF-8; a quoted cell may hold line breaks."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from lorabank.core.errors import DataError
from lorabank.data.formats import UNCHANGED, Table, bad_row, check_row_limit, missing_column


class Csv:
    """A CSV file whose first line names the columns; every cell is a string, blank lines are skipped.

    Every method raises DataError where the file is not that, with the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> tuple[str, ...]:
        """The cells of the header."""
        with closing(_lines(self.path)) as lines:
            return tuple(_next_row(self.path, csv.reader(lines, strict=True)) or ())

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of these columns, each row with the line on which it starts; None for an optional one not there.

        Raises:
            DataError: A column is missing or stands twice, quotes are broken or a row has another number of cells.
        """
        with closing(_lines(self.path)) as lines:  # at once, not when the error that ends it is forgotten
            return self._table(csv.reader(lines, strict=True), columns, optional)

    def _table(self, reader: Iterator[list[str]], columns: Sequence[str], optional: Sequence[str]) -> Table:
        table = Table(columns=(*columns, *optional))
        header = _next_row(self.path, reader)
        if header is None:
            return table
        wanted = [column for column in table.columns if column in columns or column in header]
        indices = dict(zip(wanted, _indices(self.path, header, wanted), strict=True))
        places = [indices.get(column) for column in table.columns]
        while True:
            line = reader.line_num + 1  # type: ignore[attr-defined]
            cells = _next_row(self.path, reader)
            if cells is None:
                return table
            if not cells:
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells, but the header names {len(header)} columns"
                raise bad_row(self.path, f"line {line}", problem)
            table.lines.append(line)
            table.rows.append(tuple(None if place is None else cells[place] for place in places))
            check_row_limit(self.path, len(table.rows))


def _lines(path: Path) -> Generator[str]:
    """Decoded line by line, so that a byte that is not UTF-8 can be located."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"line {number}, byte {error.start + 1}"
                raise bad_row(path, where, "not UTF-8", hint="save the file as UTF-8") from error


def _next_row(path: Path, reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, or None at the end of the file."""
    line = reader.line_num + 1  # type: ignore[attr-defined]
    try:
        return next(reader, None)
    except csv.Error as error:
        raise bad_row(path, f"line {line}", f"not CSV: {error}") from error


def _indices(path: Path, header: list[str], columns: Sequence[str]) -> list[int]:
    for column in columns:
        if column not in header:
            error = missing_column(path, column, header)
            error.hint = f"{error.hint} (the first line must hold the column names, separated by commas)"
            raise error
        if header.count(column) > 1:
            raise DataError(f"{str(path)!r}: the column {column!r} stands twice in the header", unchanged=UNCHANGED)
    return [header.index(column) for column in columns]
