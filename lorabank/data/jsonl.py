"""JSON lines: one object a line, UTF-8, read strictly."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lorabank.data.formats import LINE_FEEDS, Table, bad_row, missing_column
from lorabank.data.lines import text_lines
from lorabank.data.strict_json import DECODER, KINDS, Refused, offset_of, problem_of


class JsonLines:
    """A JSON lines file; blank lines are skipped, a byte order mark is accepted.

    Every method raises DataError where a line is not a strict JSON object, with its line and column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> tuple[str, ...]:
        """The keys of the first object; nothing behind it is read."""
        with closing(self._records()) as records:
            return next((tuple(record) for _, record in records), ())

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The values of these keys, as Python values; None for an optional one that an object lacks.

        Raises:
            DataError: A line lacks one of ``columns``.
        """
        with closing(self._records()) as records:  # at once, not when the error that ends it is forgotten
            return self._table(records, columns, optional)

    def _table(
        self, records: Iterable[tuple[int, dict[str, Any]]], columns: Sequence[str], optional: Sequence[str]
    ) -> Table:
        table = Table(str(self.path), (*columns, *optional))
        for number, record in records:
            absent = [column for column in columns if column not in record]
            if absent:
                # Where the first row lacks the key, it is the file's columns that are misnamed, not one row.
                where = f"line {number}" if table.rows else ""
                raise missing_column(self.path, absent[0], list(record), where=where)
            table.add(number, tuple(record.get(column) for column in table.columns))
        return table

    def _records(self) -> Generator[tuple[int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for number, line in text_lines(file, self.path):
                yield number, _parse(self.path, number, line)


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"line {number}"
    try:
        record = DECODER.decode(line)
    except Refused as error:
        where += f", column {offset_of(error.token, line) + 1}" if error.token else ""
        raise bad_row(path, where, str(error)) from error
    except json.JSONDecodeError as error:
        hint = LINE_FEEDS if "\r" in line.rstrip("\r\n") else None
        raise bad_row(path, f"{where}, column {error.colno}", problem_of(error), hint=hint) from error
    except RecursionError as error:
        raise bad_row(path, where, "nested too deeply") from error
    if not isinstance(record, dict):
        raise bad_row(path, where, f"expected an object, found {KINDS[type(record)]}", hint="write one object a line")
    return record
