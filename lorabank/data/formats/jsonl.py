"""JSON lines: one object a line, UTF-8, read strictly."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabank.data.bad_rows import BadRow, BadRows
from lorabank.data.formats.base import LINE_FEEDS, Table, bad_row, missing_cell, missing_column, too_much
from lorabank.data.formats.lines import text_lines
from lorabank.data.formats.strict_json import DECODER, KINDS, Refused, offset_of, problem_of
from lorabank.data.formats.text_file import TextFile, TextFormat

_MAX_KEYS = 10_000
"""Keys that are columns; more are data in the place of keys."""


@dataclass(frozen=True)
class JsonLines(TextFormat):
    """JSON lines: one object a line."""

    def __call__(self, path: Path) -> JsonLinesFile:
        """The reader of a file."""
        return JsonLinesFile(TextFile(path, self.encoding))


class JsonLinesFile:
    """A JSON lines file; blank lines are skipped, a byte order mark is accepted.

    A line that is not a strict JSON object is a bad row, with its line and column.
    """

    def __init__(self, text: TextFile) -> None:
        self.path = text.path
        self._text = text

    @property
    def read_as(self) -> str:
        """What is not the plain default."""
        return self._text.read_as

    def columns(self) -> tuple[str, ...]:
        """The keys of the first object; nothing behind it is read.

        Raises:
            DataError: No line is an object.
        """
        with closing(self._records()) as records:
            return first_keys(str(self.path), records)

    def all_columns(self) -> tuple[str, ...]:
        """The keys of all objects, in the order in which they appear."""
        with closing(self._records()) as records:
            return every_key(str(self.path), records)

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The values of these keys, as Python values; None for an optional one that an object lacks.

        Raises:
            DataError: The first object lacks one of ``columns``; where another does, it is a bad row.
        """
        with closing(self._records()) as records:  # at once, not when the error that ends it is forgotten
            return fill_table(Table(str(self.path), (*columns, *optional)), records, columns)

    def _records(self) -> Generator[tuple[int, dict[str, Any] | BadRow]]:
        with self._text.open() as file:
            for number, line in text_lines(file, self.path, self._text.undecodable):
                yield number, line if isinstance(line, BadRow) else parse_line(self.path, number, line)


def first_keys(source: str, records: Iterable[tuple[int, dict[str, Any] | BadRow]]) -> tuple[str, ...]:
    """The keys of the first object; nothing behind it is taken.

    Raises:
        DataError: There are records, and none is an object.
    """
    bad = BadRows()
    for number, record in records:
        if not isinstance(record, BadRow):
            return tuple(record)
        bad.add(number, record)
    if bad.count:
        raise bad.error(source)
    return ()


def every_key(source: str, records: Iterable[tuple[int, dict[str, Any] | BadRow]]) -> tuple[str, ...]:
    """The keys of all objects, in the order in which they appear.

    Raises:
        DataError: There are more than a table may have columns.
    """
    keys: dict[str, None] = {}
    for _, record in records:
        if not isinstance(record, BadRow):
            keys.update(dict.fromkeys(record))
            if len(keys) > _MAX_KEYS:
                raise too_much(source, f"its objects have more than {_MAX_KEYS:,} different keys")
    return tuple(keys)


def fill_table(table: Table, records: Iterable[tuple[int, dict[str, Any] | BadRow]], columns: Sequence[str]) -> Table:
    """A table of objects by their number.

    Raises:
        DataError: The first object lacks one of ``columns``.
    """
    for number, record in records:
        if isinstance(record, BadRow):
            table.refuse(number, record)
            continue
        absent = next((column for column in columns if column not in record), None)
        if absent is None:
            table.add(number, tuple(record.get(column) for column in table.columns))
        elif table.rows:
            table.refuse(number, missing_cell(table.source, f"{table.unit} {number}", absent, list(record)))
        else:  # it is the file's columns that are misnamed, not one row
            raise missing_column(table.source, absent, list(record))
    return table


def parse_line(path: Path, number: int, line: str) -> dict[str, Any] | BadRow:
    """The object of a line, or what is wrong with the line."""
    where = f"line {number}"
    try:
        record = DECODER.decode(line)
    except Refused as error:
        where += f", column {offset_of(error.token, line) + 1}" if error.token else ""
        return bad_row(path, where, str(error))
    except json.JSONDecodeError as error:
        hint = LINE_FEEDS if "\r" in line.rstrip("\r\n") else None
        return bad_row(path, f"{where}, column {error.colno}", problem_of(error), hint=hint)
    except RecursionError:
        return bad_row(path, where, "nested too deeply")
    if not isinstance(record, dict):
        return bad_row(path, where, f"expected an object, found {KINDS[type(record)]}", hint="write one object a line")
    return record
