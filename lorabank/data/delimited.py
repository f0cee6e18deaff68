"""CSV: a header line, commas, double quotes (RFC 4180), UTF-8; a quoted cell may hold line breaks."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorabank.core.errors import DataError
from lorabank.data.formats import UNCHANGED, Table, bad_row, check_row_limit, missing_column


def read_csv(path: Path, columns: Sequence[str]) -> Table:
    """Read a CSV file; every cell is a string, blank lines are skipped.

    Args:
        path: The file; its first line names the columns.
        columns: Names of the columns to read.

    Returns:
        The cells, each row with the line on which it starts.

    Raises:
        DataError: A column is missing, quotes are broken or a row has another number of cells; names the line.
    """
    table = Table(columns=tuple(columns))
    reader = csv.reader(_lines(path), strict=True)
    header = _next_row(path, reader)
    if header is None:
        return table
    indices = _indices(path, header, columns)
    while True:
        line = reader.line_num + 1
        cells = _next_row(path, reader)
        if cells is None:
            return table
        if not cells:
            continue
        if len(cells) != len(header):
            raise bad_row(path, f"line {line}", f"{len(cells)} cells, but the header names {len(header)} columns")
        table.lines.append(line)
        table.rows.append(tuple(cells[index] for index in indices))
        check_row_limit(path, len(table.rows))


def _lines(path: Path) -> Iterator[str]:
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
