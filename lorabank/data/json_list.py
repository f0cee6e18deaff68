"""JSON: one list of objects, UTF-8, read strictly and entry by entry, so that a bad entry can be named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorabank.core.errors import DataError
from lorabank.data.formats import Table, bad_row, check_row_limit, missing_column
from lorabank.data.strict_json import BYTE_ORDER_MARK, DECODER, KINDS, Refused, offset_of, problem_of

_BLANKS = re.compile(r"[ \t\n\r]*")
_SHAPE = "write a list of objects, [{...}, {...}], or one object a line in a .jsonl file"


class JsonList:
    """A JSON file that holds a list of objects; a byte order mark is accepted.

    Every method raises DataError where the file is not that, with the entry's number from 1, line and column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> tuple[str, ...]:
        """The keys of the first object; nothing behind it is parsed."""
        return next((tuple(record) for _, record in self._entries()), ())

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The values of these keys, as Python values; None for an optional one that an object lacks.

        Raises:
            DataError: An entry lacks one of ``columns``.
        """
        table = Table(columns=(*columns, *optional), unit="entry")
        for number, record in self._entries():
            absent = [column for column in columns if column not in record]
            if absent:
                where = f"entry {number}" if table.rows else ""
                raise missing_column(self.path, absent[0], list(record), where=where)
            table.lines.append(number)
            table.rows.append(tuple(record.get(column) for column in table.columns))
            check_row_limit(self.path, len(table.rows))
        return table

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number, from 1, and object of each entry."""
        text = self._text()
        at = _skip(text, 0)
        if text[at : at + 1] != "[":
            value, _ = self._decode(text, at, "")
            problem = f"expected a list of objects, found {KINDS[type(value)]}"
            raise bad_row(self.path, _place(text, at), problem, hint=_SHAPE)
        at, number = _skip(text, at + 1), 0
        while number or text[at : at + 1] != "]":
            number += 1
            start = at
            value, at = self._decode(text, start, f"entry {number}")
            if not isinstance(value, dict):
                where = f"entry {number} ({_place(text, start)})"
                raise bad_row(self.path, where, f"expected an object, found {KINDS[type(value)]}", hint=_SHAPE)
            yield number, value
            at = _skip(text, at)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
        self._check_end(text, at, number)

    def _check_end(self, text: str, at: int, number: int) -> None:
        if text[at : at + 1] != "]":
            raise bad_row(self.path, f"{_place(text, at)}, behind entry {number}", "not JSON: expecting ',' or ']'")
        rest = _skip(text, at + 1)
        if rest < len(text):
            raise bad_row(self.path, _place(text, rest), "something follows the list", hint=_SHAPE)

    def _text(self) -> str:
        raw = self.path.read_bytes().removeprefix(BYTE_ORDER_MARK)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            before = raw[: error.start]
            where = f"line {before.count(10) + 1}, byte {error.start - before.rfind(10)}"
            raise bad_row(self.path, where, "not UTF-8", hint="save the file as UTF-8") from error

    def _decode(self, text: str, at: int, entry: str) -> tuple[Any, int]:
        """The value that begins at ``at``, and where it ends."""

        def bad(position: int | None, problem: str) -> DataError:
            place = "" if position is None else _place(text, position)
            where = f"{entry} ({place})" if entry and place else entry or place
            return bad_row(self.path, where, problem)

        try:
            return DECODER.raw_decode(text, at)
        except Refused as error:
            position = offset_of(error.token, text, at) if error.token else at
            raise bad(position, str(error)) from error
        except json.JSONDecodeError as error:
            raise bad(error.pos, problem_of(error)) from error
        except RecursionError as error:
            raise bad(at, "nested too deeply") from error


def _skip(text: str, at: int) -> int:
    """The first place from ``at`` on that is not blank."""
    match = _BLANKS.match(text, at)
    assert match is not None
    return match.end()


def _place(text: str, at: int) -> str:
    """Line and column of an offset, from 1."""
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"
