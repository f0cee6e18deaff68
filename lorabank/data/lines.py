"""The lines of a text file or a stream: UTF-8 to the last byte, none longer than the limit, blank ones skipped.

``str.splitlines`` breaks a line at U+2028; here a line ends at a line feed and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lorabank.core.limits import MAX_LINE
from lorabank.data.cells import BadCell, check_text
from lorabank.data.formats import Table, bad_row, too_long
from lorabank.data.strict_json import BYTE_ORDER_MARK


def text_lines(file: BinaryIO, source: str | Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank; a byte order mark before the first is dropped.

    Raises:
        DataError: A line is too long or not UTF-8.
    """
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise too_long(source, f"line {number}", raw)
        if number == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"line {number}, byte {error.start + 1}"
            raise bad_row(source, where, "not UTF-8", hint="save the file as UTF-8") from error
        if line.strip():
            yield number, line


def read_texts(file: BinaryIO, source: str) -> tuple[str, ...]:
    """One text a line, checked as the cells of a file are.

    Raises:
        DataError: As ``text_lines``, a line holds a NUL character, or there are too many.
    """
    table = Table(source, ("text",))
    for number, line in text_lines(file, source):
        try:
            table.add(number, (check_text(line.rstrip("\r\n")),))
        except BadCell as error:
            raise bad_row(source, f"line {number}", error.problem) from error
    return tuple(str(text) for (text,) in table.rows)
