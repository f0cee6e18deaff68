"""What every reader of a table file hands over, and how it says what is wrong with the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import getsizeof
from typing import Protocol

from lorabank.core.commands import Command
from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_DECODED, MAX_LINE, MAX_ROWS
from lorabank.core.settings import nearest
from lorabank.data.bad_rows import UNCHANGED, BadRow, BadRows

LINE_FEEDS = "a line ends at a line feed: save the file with Unix line endings; a carriage return does not end a line"
_BAD_ROW = 1024
"""Bytes of memory that a bad row takes, about."""

_SHOWN = 60
_FEWER = "train on a part of the rows; limits names what is accepted"
_LIMITS = (Command("limits"),)


@dataclass
class Table:
    """The wanted columns of a file, as they stand there.

    Attributes:
        source: The file's name as it was given.
        columns: Names of the columns that were read, as the file has them.
        unit: What ``lines`` counts, from 1: ``"line"`` of a text file, ``"entry"`` of a JSON list, or ``"row"``.
        lines: Where each row starts.
        rows: One tuple of cells for each row, in the order of ``columns``.
        held: Bytes of memory that the cells take.
        bad: Rows that are left out of ``rows``.
    """

    source: str
    columns: tuple[str, ...]
    unit: str = "line"
    lines: list[int] = field(default_factory=list)
    rows: list[tuple[object, ...]] = field(default_factory=list)
    held: int = 0
    bad: BadRows = field(default_factory=BadRows)

    def add(self, line: int, cells: tuple[object, ...]) -> None:
        """Add a row; every reader adds its rows here, so that the limits hold for all of them.

        Raises:
            DataError: There are more rows, or the cells take more memory, than the limits allow.
        """
        self.lines.append(line)
        self.rows.append(cells)
        self.held += sum(_held(cell) if isinstance(cell, list | dict) else getsizeof(cell) for cell in cells)
        if self.held > MAX_DECODED:
            raise too_much(self.source, f"its cells take more than {MAX_DECODED:,} bytes of memory")
        check_row_limit(self.source, len(self.rows))

    def refuse(self, line: int, error: BadRow) -> None:
        """Leave a row out, for what is wrong with it; whether that ends the reading is decided later for all.

        Raises:
            DataError: There are so many that they take more memory than the limits allow.
        """
        self.bad.add(line, error)
        self.held += _BAD_ROW
        if self.held > MAX_DECODED:
            raise too_much(self.source, f"its bad rows take more than {MAX_DECODED:,} bytes of memory")


class Reader(Protocol):
    """A file that was opened for its columns."""

    @property
    def read_as(self) -> str:
        """How it is read, in words, where that is not plain; else nothing."""

    def columns(self) -> tuple[str, ...]:
        """The columns there are, without reading the rows; of JSON the keys of the first object."""

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of ``columns``, which must be there, then of ``optional``, None where they are not."""


class Format(Protocol):
    """An entry of the shelf `lorabank.core.shelves.FORMATS`, with its settings: gives the reader of a file.

    ``packed = True`` says that a file of it is read by `TextFile`, so that it may be packed (``.gz``).
    """

    def __call__(self, path: Path, /) -> Reader:
        """The reader; it refuses settings that mean nothing, the rest is read when it is asked for."""


def bad_row(
    source: str | Path, where: str, problem: str, *, hint: str | None = None, commands: Sequence[Command] = ()
) -> BadRow:
    """The error for one place in a file, ``where`` being for example ``"line 3"``."""
    return BadRow(source, where, problem, hint=hint, commands=commands)


def too_long(source: str | Path, where: str, raw: bytes | str) -> BadRow:
    """The error for a row of a text file that does not end within the limit; ``raw`` is its beginning."""
    returns = ("\r" if isinstance(raw, str) else b"\r") in raw  # type: ignore[operator]
    problem = f"longer than {MAX_LINE:,} bytes"
    if returns:
        return bad_row(source, where, problem, hint=LINE_FEEDS)
    return bad_row(source, where, problem, commands=_LIMITS)


def missing_column(source: str | Path, column: str, present: Sequence[str], *, hint: str | None = None) -> DataError:
    """The error for a wanted column that a file does not have."""
    return DataError(
        f"{str(source)!r}: {_missing(column, present)}",
        unchanged=UNCHANGED,
        hint=hint or "name the columns: --text-column COLUMN, --label-column COLUMN",
    )


def missing_cell(source: str | Path, where: str, column: str, present: Sequence[str]) -> BadRow:
    """The error for the row at ``where`` that lacks a column which others have."""
    return bad_row(source, where, _missing(column, present))


def _missing(column: str, present: Sequence[str]) -> str:
    return f"no column {column!r}; its columns are {listed_columns(present)}{nearest(column, list(present))}"


def listed_columns(present: Sequence[str]) -> str:
    """The first twenty names, in quotes and cut where they are long, and how many more there are."""
    shown = ", ".join(repr(name[:_SHOWN]) for name in present[:20]) or "none"
    return shown + (f" and {len(present) - 20} more" if len(present) > 20 else "")


def check_row_limit(source: str | Path, rows: int) -> None:
    """Refuse a file with more rows than can be held in memory with their texts."""
    if rows > MAX_ROWS:
        raise DataError(
            f"{str(source)!r} has more than {MAX_ROWS:,} rows", unchanged=UNCHANGED, hint=_FEWER, commands=_LIMITS
        )


def too_much(source: str | Path, problem: str) -> DataError:
    """The error for a file that would decode to more than the limits allow."""
    return DataError(
        f"{str(source)!r} is too large when decoded: {problem}", unchanged=UNCHANGED, hint=_FEWER, commands=_LIMITS
    )


def _held(cell: object) -> int:
    """Bytes of memory of a nested cell; not recursive, since JSON may be nested deeper than Python's stack."""
    total, rest = 0, [cell]
    while rest:
        value = rest.pop()
        total += getsizeof(value)
        if isinstance(value, dict):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            rest += value
    return total
