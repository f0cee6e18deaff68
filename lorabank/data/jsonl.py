"""JSON lines: one object a line, UTF-8, read as strictly as RFC 8259 says.

``json.loads`` alone accepts NaN, infinite numbers and repeated keys, and ``str.splitlines`` breaks a line at
U+2028. Here a line ends at a line feed and nowhere else, and each of those is refused with its line and column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lorabank.data.formats import Table, bad_row, check_row_limit, missing_column

MAX_LINE_BYTES = 1 << 20

_BOM = b"\xef\xbb\xbf"
# A whole string, or a run of anything else that is not punctuation: a number or a word.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,:\[\]{}"]+')
_KINDS = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}


class _Refused(ValueError):
    """Something that ``json`` would accept; ``token`` is the text that stands in the line."""

    def __init__(self, problem: str, token: str | None = None) -> None:
        super().__init__(problem)
        self.token = token


def read_jsonl(path: Path, columns: Sequence[str]) -> Table:
    """Read a JSON lines file; blank lines are skipped, a byte order mark is accepted.

    Args:
        path: The file.
        columns: Keys that every object must have.

    Returns:
        The values of those keys, as Python values.

    Raises:
        DataError: A line is not a strict JSON object or lacks a key; names line and column.
    """
    table = Table(columns=tuple(columns))
    for number, line in _lines(path):
        record = _parse(path, number, line)
        absent = [column for column in columns if column not in record]
        if absent:
            # Where the first row lacks the key, it is the file's columns that are misnamed, not one row.
            where = f"line {number}" if table.rows else ""
            raise missing_column(path, absent[0], list(record), where=where)
        table.lines.append(number)
        table.rows.append(tuple(record[column] for column in columns))
        check_row_limit(path, len(table.rows))
    return table


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise bad_row(path, f"line {number}", f"longer than {MAX_LINE_BYTES:,} bytes")
            if number == 1:
                raw = raw.removeprefix(_BOM)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"line {number}, byte {error.start + 1}"
                raise bad_row(path, where, "not UTF-8", hint="save the file as UTF-8") from error
            if line.strip():
                yield number, line


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"line {number}"
    try:
        record = _DECODER.decode(line)
    except _Refused as error:
        where += f", column {_column_of(error.token, line)}" if error.token else ""
        raise bad_row(path, where, str(error)) from error
    except json.JSONDecodeError as error:
        raise bad_row(
            path, f"{where}, column {error.colno}", f"not JSON: {error.msg.lower().removesuffix(' at')}"
        ) from error
    except RecursionError as error:
        raise bad_row(path, where, "nested too deeply") from error
    if not isinstance(record, dict):
        raise bad_row(path, where, f"expected an object, found {_KINDS[type(record)]}", hint="write one object a line")
    return record


def _column_of(token: str, line: str) -> int:
    """Column of a number or constant, from 1; the same letters inside a string do not count."""
    return next((match.start() + 1 for match in _TOKEN.finditer(line) if match.group() == token), 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for position, key in enumerate(keys) if key in keys[:position])
        raise _Refused(f"the key {repeated!r} stands twice")
    return record


def _constant(token: str) -> NoReturn:
    raise _Refused(f"{token} is not JSON", token)


def _float(token: str) -> float:
    value = float(token)
    if value in (float("inf"), float("-inf")):
        raise _Refused("the number is too large", token)
    return value


def _int(token: str) -> int:
    try:
        return int(token)
    except ValueError as error:  # Python's own limit, 4,300 digits
        raise _Refused("the number has too many digits", token) from error


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)
