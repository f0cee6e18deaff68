"""Table files: one reader for each suffix, one for the hub, and what every reader hands over.

A reader is a class in a file of its own, named in ``FORMATS``. It answers for the syntax of its format; the meaning
of the cells (what a text or a label may be) is checked once for all formats, by the forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import getsizeof
from typing import Any, Protocol

from lorabank.core.commands import Command
from lorabank.core.config import nearest
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.limits import MAX_DECODED, MAX_LINE, MAX_ROWS
from lorabank.core.plugins import load
from lorabank.data.bad_rows import UNCHANGED as UNCHANGED
from lorabank.data.bad_rows import BadRow, BadRows
from lorabank.data.opening import AS_IT_IS, PACKED, Reading

FORMATS = {
    ".jsonl": "lorabank.data.jsonl:JsonLines",
    ".json": "lorabank.data.json_list:JsonList",
    ".csv": "lorabank.data.delimited:Csv",
    ".tsv": "lorabank.data.delimited:Tsv",
    ".txt": "lorabank.data.delimited:DelimitedText",
    ".xlsx": "lorabank.data.workbook:Workbook",
    ".parquet": "lorabank.data.parquet:Parquet",
}

TEXT = (".jsonl", ".json", ".csv", ".tsv", ".txt")
"""Those that are text, and may be packed: ``.csv.gz``."""

LINE_FEEDS = "a line ends at a line feed: save the file with Unix line ends, not with carriage returns alone"
_SHEETS = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
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
    """A file that was opened for its columns; made from its path and what the user says about reading it."""

    @property
    def read_as(self) -> str:
        """How it is read, in words, where that is not plain; else nothing."""

    def columns(self) -> tuple[str, ...]:
        """The columns there are, without reading the rows; of JSON the keys of the first object."""

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of ``columns``, which must be there, then of ``optional``, None where they are not."""


def open_reader(source: str | Path, reading: Reading = AS_IT_IS) -> Reader:
    """The reader of a table file or of a data set of the hub.

    Args:
        source: A file whose suffix, in small letters, is in ``FORMATS`` (one of ``TEXT`` also with ``.gz`` behind it),
            or ``hf:OWNER/NAME[/CONFIG][:SPLIT]``.
        reading: What the user says about reading it.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file is empty or of another kind.
        ConfigError: ``reading`` names no delimiter or no encoding, or it does not go with the kind of file.
        MissingExtraError: The kind of file needs a package that is not installed.
    """
    if str(source).startswith("hf:"):
        from lorabank.data.hub import HubDataset

        return HubDataset(str(source))
    file = Path(source)
    try:
        str(source).encode()
    except UnicodeEncodeError:  # the bank records the name, and would refuse it after the training
        raise DataError(
            f"{str(source)!r}: the name is not UTF-8", unchanged=UNCHANGED, hint="rename the file"
        ) from None
    if not file.exists():
        names_hub = len(file.parts) == 2 and not file.suffix
        hint = f"a data set of the hub is named hf:{source}" if names_hub else "check the path given to --data"
        raise NotFoundError(f"no such file: {str(source)!r}", unchanged=UNCHANGED, hint=hint)
    # A pipe or a device would block for ever, so only regular files are opened.
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "not a regular file"
        raise DataError(f"{str(source)!r} is {kind}; a data file is needed", unchanged=UNCHANGED)
    reader = _reader_class(file)
    if file.stat().st_size == 0:
        raise DataError(f"{str(source)!r} is empty", unchanged=UNCHANGED)
    opened: Reader = reader(file, reading)
    return opened


def _reader_class(file: Path) -> Any:
    """What reads files of this name."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    suffix = "".join(suffixes[-1:])
    if suffix == PACKED:
        suffix = suffixes[0]
        if suffix not in TEXT:
            raise DataError(
                f"{str(file)!r}: of packed files those of text are read: {', '.join(f'{one}.gz' for one in TEXT)}",
                unchanged=UNCHANGED,
                hint="unpack it: gunzip",
            )
    try:
        return load(FORMATS, suffix, "format")
    except ConfigError as error:
        hint = f"save it as .xlsx or .csv; {error.hint}" if suffix in _SHEETS else error.hint
        raise DataError(f"{str(file)!r}: {error.message}", unchanged=UNCHANGED, hint=hint) from error


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
    return f"no column {column!r}; its columns are {listed_columns(present)}.{nearest(column, list(present))}"


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
        f"{str(source)!r} decodes to too much: {problem}", unchanged=UNCHANGED, hint=_FEWER, commands=_LIMITS
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
