"""What stands between the cells of a delimited file: inferred from its header and first rows, or given by the user."""

from __future__ import annotations

import csv
import io
import re
from typing import BinaryIO, NamedTuple

from lorabank.core.errors import ConfigError
from lorabank.core.settings import nearest

COMMA = ","
NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "pipe": "|", "\\t": "\t"}
_DETECTED = (",", ";", "\t", "|")
_DECLARED = re.compile(r'\ufeff?"?sep=(.)"?\r?\n', re.IGNORECASE)
_SAMPLE = 256 * 1024
_ROWS = 50


class Dialect(NamedTuple):
    """How a delimited file is written.

    Attributes:
        delimiter: Between two cells.
        declared: Whether the first line only says so (``sep=;``, for Excel) and the header is the second.
    """

    delimiter: str
    declared: bool = False

    @property
    def shown(self) -> str:
        """The delimiter for people."""
        return "tabs" if self.delimiter == "\t" else repr(self.delimiter)


class _Fit(NamedTuple):
    """How well a delimiter fits a sample; the greatest is the best."""

    all_rows: bool
    rows: float
    columns: int


def check_delimiter(given: str) -> str:
    """A delimiter as the user writes it: one character, or its name.

    Raises:
        ConfigError: It is neither, or a character that cannot separate cells.
    """
    delimiter = NAMES.get(given.casefold(), given)
    if len(delimiter) == 1 and delimiter not in '"\r\n\0 ' and not delimiter.isalnum():
        return delimiter
    raise ConfigError(
        f"delimiter: {given!r} cannot separate cells{nearest(given, list(NAMES))}",
        hint="--set delimiter=semicolon, comma, tab or bar, or one character in quotes: --set 'delimiter=;'",
        unchanged="nothing was changed",
    )


def find_dialect(file: BinaryIO, given: str | None, *, usual: str = COMMA) -> Dialect:
    """The dialect of a file.

    The header decides, with the first rows: a delimiter fits where it gives the header two cells or more and every
    row as many. What is usual is taken where it fits; otherwise the one that fits most rows, of these the one that
    makes most columns.

    Args:
        file: Its bytes as UTF-8.
        given: What the user says.
        usual: What the name of the file says.
    """
    raw = file.read(_SAMPLE)
    text = raw.decode("utf-8", "replace")
    declared = _DECLARED.match(text)
    if given is not None:
        return Dialect(given, declared is not None)
    if declared:
        return Dialect(declared[1], True)
    whole = len(raw) < _SAMPLE
    fits = {delimiter: fit for delimiter in _DETECTED if (fit := _fit(text.lstrip("\ufeff"), delimiter, whole))}
    if not fits or (usual in fits and fits[usual].all_rows):
        return Dialect(usual)
    return Dialect(max(fits, key=lambda delimiter: (fits[delimiter], delimiter == usual)))


def _fit(text: str, delimiter: str, whole: bool) -> _Fit | None:
    """None where the header is one cell, or holds a cell without a name."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    ended = False
    try:
        for cells in reader:
            if cells:
                rows.append(cells)
            if len(rows) > _ROWS:
                break
        else:
            ended = True
    except csv.Error:
        if not rows:
            return None
        rows.append([])  # which fits nothing
    if ended and not whole and len(rows) > 1:  # the last was cut
        rows.pop()
    if not rows or len(rows[0]) < 2:
        return None
    fitting = sum(len(cells) == len(rows[0]) for cells in rows[1:])
    share = fitting / (len(rows) - 1) if len(rows) > 1 else 1.0
    return _Fit(share == 1.0, share, len(rows[0]))
