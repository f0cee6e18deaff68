"""The lines of a text file or a stream: UTF-8 to the last byte, none longer than the limit, blank ones skipped.

``str.splitlines`` breaks a line at U+2028; here a line ends at a line feed and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_LINE
from lorabank.data.bad_rows import BadRow
from lorabank.data.formats.base import Table, bad_row, too_long
from lorabank.data.formats.cells import BadCell, check_text
from lorabank.data.formats.strict_json import BYTE_ORDER_MARK

_PASSED = 64
"""How many times the limit a line may have and still be left out alone."""


def text_lines(
    file: BinaryIO, source: str | Path, undecodable: Callable[[str], DataError]
) -> Iterator[tuple[int, str | BadRow]]:
    """Number, from 1, and text of each line that is not blank; a byte order mark before the first is dropped.

    Args:
        file: The bytes.
        source: What they are called.
        undecodable: From a place to the error for bytes there that are not UTF-8.

    Yields:
        In the place of the text what is wrong with it, where it is too long or not UTF-8.

    Raises:
        DataError: What ``undecodable`` gives, where it is about more than a row.
    """
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            error = too_long(source, f"line {number}", raw)
            _pass_line(file, raw, error)
            yield number, error
            continue
        if number == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            found = undecodable(f"line {number}, byte {error.start + 1}")
            if not isinstance(found, BadRow):
                raise found from error
            yield number, found
            continue
        if line.strip():
            yield number, line


def _pass_line(file: BinaryIO, raw: bytes, error: DataError) -> None:
    """Go to the end of a long line.

    Raises:
        DataError: ``error``, where it is so long that this would take a while.
    """
    for _ in range(_PASSED):
        if not raw or raw.endswith(b"\n"):
            return
        raw = file.readline(MAX_LINE)
    raise error


def read_texts(file: BinaryIO, source: str) -> tuple[str, ...]:
    """One text a line, checked as the cells of a file are.

    Raises:
        DataError: As `each_text`, or there are too many.
    """
    table = Table(source, ("text",))
    hint = "give the texts in a file, which may have any encoding: --data"
    for number, text in each_text(file, source, hint=hint):
        table.add(number, (text,))
    return tuple(str(text) for (text,) in table.rows)


def each_text(file: BinaryIO, source: str, *, hint: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank, as soon as it is there.

    Args:
        file: The bytes.
        source: What they are called.
        hint: What to do if they are not UTF-8.

    Raises:
        DataError: As ``text_lines``, or a line holds a NUL character.
    """

    def undecodable(where: str) -> DataError:
        return bad_row(source, where, "not UTF-8", hint=hint)

    for number, line in text_lines(file, source, undecodable):
        if isinstance(line, BadRow):
            raise line
        try:
            yield number, check_text(line.rstrip("\r\n"))
        except BadCell as error:
            raise bad_row(source, f"line {number}", error.problem) from error
