"""CSV and its kin: a header line, double quotes (RFC 4180); a quoted cell may hold line breaks.

Python's reader takes a record of any length and a cell of 131,072 characters. Here a record has the limit that a
line of JSON has, and a cell has none of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, ClassVar

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_LINE
from lorabank.core.settings import setting
from lorabank.data.bad_rows import UNCHANGED, BadRow
from lorabank.data.formats.base import LINE_FEEDS, Table, bad_row, missing_column, too_long
from lorabank.data.formats.dialects import COMMA, Dialect, check_delimiter, find_dialect
from lorabank.data.formats.text_file import BadFile, TextFile, TextFormat


@dataclass(frozen=True)
class Csv(TextFormat):
    """Cells with a delimiter between them, which is a comma unless the header shows another."""

    usual: ClassVar[str] = COMMA
    sure: ClassVar[bool] = True
    """Whether a file of this name is surely a table; else a header of one cell is refused, and what is usual told."""

    delimiter: str | None = setting(
        None, "Separator of cells: comma, semicolon, tab, bar or another character; default: detected, and shown."
    )

    def __call__(self, path: Path) -> DelimitedFile:
        """The reader of a file.

        Raises:
            ConfigError: The delimiter cannot be one, or there is no such encoding.
        """
        return DelimitedFile(TextFile(path, self.encoding), self)


@dataclass(frozen=True)
class Tsv(Csv):
    """The same, separated by tabs unless its header shows something else."""

    usual = "\t"


@dataclass(frozen=True)
class DelimitedText(Csv):
    """A ``.txt`` file, which is read where its first line names columns, as Excel's "Unicode Text" does."""

    usual = "\t"
    sure = False


class DelimitedFile:
    """A delimited file whose first line names the columns; every cell is a string, blank lines are skipped.

    Every method raises DataError where the file is not that, with the line.
    """

    def __init__(self, text: TextFile, format: Csv) -> None:
        self.path = text.path
        self._text = text
        self._format = format
        self._given = check_delimiter(format.delimiter) if format.delimiter is not None else None

    @property
    def read_as(self) -> str:
        """What is not the plain default."""
        plain = self._dialect.delimiter == self._format.usual and self._format.sure
        separated = "" if plain else f"CSV separated by {self._dialect.shown}"
        return ", ".join(part for part in (separated, self._text.read_as) if part)

    def columns(self) -> tuple[str, ...]:
        """The cells of the header."""
        with self._records() as records:
            return tuple(self._header(records))

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of these columns, each row with the line on which it starts; None for an optional one not there.

        Raises:
            DataError: A column is missing or stands twice, or a quote is not closed.
        """
        with self._records() as records:
            return self._table(records, columns, optional)

    def _table(self, records: _Records, columns: Sequence[str], optional: Sequence[str]) -> Table:
        table = Table(str(self.path), (*columns, *optional))
        header = self._header(records)
        if not header:
            return table
        wanted = [column for column in table.columns if column in columns or column in header]
        indices = dict(zip(wanted, self._indices(header, wanted), strict=True))
        places = [indices.get(column) for column in table.columns]
        while (cells := records.next()) is not None:
            if isinstance(cells, BadRow):
                table.refuse(records.line, cells)
            elif cells and len(cells) != len(header):
                problem = f"{len(cells)} cells, but the header names {len(header)} columns"
                table.refuse(records.line, bad_row(self.path, f"line {records.line}", problem))
            elif cells:
                table.add(records.line, tuple(None if place is None else cells[place] for place in places))
        return table

    def _header(self, records: _Records) -> list[str]:
        """The first record; nothing where there is none."""
        cells = records.next()
        if isinstance(cells, BadRow):
            raise cells
        if len(cells or []) < 2 and not self._format.sure and self._given is None:
            raise DataError(
                f"{str(self.path)!r}: a {self.path.suffix} file is read as a table, and its first line does not name "
                "columns",
                unchanged=UNCHANGED,
                hint="name the separator: --set delimiter=tab; or save plain texts as .csv, with a first "
                "line that says text",
            )
        return cells or []

    @cached_property
    def _dialect(self) -> Dialect:
        with self._text.open() as file:
            return find_dialect(file, self._given, usual=self._format.usual)

    @contextmanager
    def _records(self) -> Iterator[_Records]:
        """Open the file; the limit that Python's reader puts on a cell, for the whole process, is set back."""
        dialect = self._dialect
        limit = csv.field_size_limit(MAX_LINE)
        try:
            with self._text.open() as file:
                yield _Records(self._text, file, dialect)
        finally:
            csv.field_size_limit(limit)

    def _indices(self, header: list[str], columns: Sequence[str]) -> list[int]:
        for column in columns:
            if column not in header:
                error = missing_column(self.path, column, header)
                read = f"read as separated by {self._dialect.shown}; for another separator: --set delimiter=NAME"
                error.hint = f"{error.hint} (the first line must hold the column names, {read})"
                raise error
            if header.count(column) > 1:
                problem = f"{str(self.path)!r}: the column {column!r} appears twice in the header"
                raise DataError(problem, unchanged=UNCHANGED)
        return [header.index(column) for column in columns]


class _Records:
    """The records of an open file one by one, each with a limit on its bytes.

    Attributes:
        line: Where the last record starts, from 1.
    """

    def __init__(self, text: TextFile, file: BinaryIO, dialect: Dialect) -> None:
        self.path = text.path
        self.line = 0
        self._text = text
        self._file = file
        self._number = 0
        self._left = 0
        self._bad: BadRow | None = None
        self._lines = self._decoded()
        self._reader = csv.reader(self._lines, delimiter=dialect.delimiter, strict=True)
        if dialect.declared:
            self._left = MAX_LINE
            next(self._lines, None)

    def next(self) -> list[str] | BadRow | None:
        """The next record, an empty one for a blank line, what is wrong with it, or None at the end of the file."""
        self.line = self._number + 1
        self._left = MAX_LINE
        self._bad = None
        try:
            cells = next(self._reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # everything behind the quote was taken for its cell
                problem = "not CSV: a quote is opened and never closed"
                raise BadFile(self.path, f"line {self.line}", problem) from error
            returns = "new-line character" in str(error)
            problem = "a carriage return without a line feed" if returns else f"not CSV: {error}"
            return bad_row(self.path, f"line {self.line}", problem, hint=LINE_FEEDS if returns else None)
        return self._bad or cells

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
                found = self._text.undecodable(f"line {self._number}, byte {error.start + 1}")
                if not isinstance(found, BadRow):
                    raise found from error
                self._bad = self._bad or found
                yield raw.decode("utf-8", "replace")
