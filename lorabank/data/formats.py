"""Table files: one reader for each suffix, and what every reader hands over.

A reader is a function ``(path, columns) -> Table`` in a file of its own, named in ``FORMATS``. It answers for the
syntax of its format; the meaning of the cells (what a text or a label may be) is checked once, in ``loading.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorabank.core.config import nearest
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.plugins import load

FORMATS = {
    ".jsonl": "lorabank.data.jsonl:read_jsonl",
    ".csv": "lorabank.data.delimited:read_csv",
    ".parquet": "lorabank.data.parquet:read_parquet",
}

MAX_ROWS = 5_000_000

UNCHANGED = "nothing was changed"


@dataclass(frozen=True)
class Table:
    """The wanted columns of a file, as they stand there.

    Attributes:
        columns: Names of the columns that were read.
        unit: What ``lines`` counts: ``"line"`` of a text file or ``"row"`` of a Parquet file, from 1.
        lines: Where each row starts.
        rows: One tuple of cells for each row, in the order of ``columns``.
    """

    columns: tuple[str, ...]
    unit: str = "line"
    lines: list[int] = field(default_factory=list)
    rows: list[tuple[object, ...]] = field(default_factory=list)


Reader = Callable[[Path, Sequence[str]], Table]


def read_table(path: str | Path, columns: Sequence[str]) -> Table:
    """Read the wanted columns of a table file.

    Args:
        path: A file whose suffix, in small letters, is in ``FORMATS``.
        columns: Names of the columns to read.

    Returns:
        At least one row.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file is empty, of another kind, or broken; names the line.
    """
    file = Path(path)
    if not file.exists():
        raise NotFoundError(f"no such file: {str(path)!r}", unchanged=UNCHANGED, hint="check the path given to --data")
    # A pipe or a device would block for ever, so only regular files are opened.
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "not a regular file"
        raise DataError(f"{str(path)!r} is {kind}; a data file is needed", unchanged=UNCHANGED)
    try:
        reader: Reader = load(FORMATS, file.suffix.lower(), "format")
    except ConfigError as error:
        raise DataError(f"{str(path)!r}: {error.message}", unchanged=UNCHANGED, hint=error.hint) from error
    if file.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is empty", unchanged=UNCHANGED)
    table = reader(file, tuple(columns))
    if not table.rows:
        raise DataError(f"{str(path)!r} has no rows", unchanged=UNCHANGED)
    return table


def bad_row(path: Path, where: str, problem: str, *, hint: str | None = None) -> DataError:
    """The error for one place in a file, ``where`` being for example ``"line 3"``."""
    return DataError(f"{str(path)!r}, {where}: {problem}", unchanged=UNCHANGED, hint=hint)


def missing_column(path: Path, column: str, present: Sequence[str], *, where: str = "") -> DataError:
    """The error for a wanted column that a file (or the row at ``where``) does not have."""
    shown = ", ".join(repr(name) for name in present[:20]) or "none"
    more = f" and {len(present) - 20} more" if len(present) > 20 else ""
    place = f", {where}" if where else ""
    return DataError(
        f"{str(path)!r}{place}: no column {column!r}; its columns are {shown}{more}.{nearest(column, list(present))}",
        unchanged=UNCHANGED,
        hint=None if where else "name the columns: --text-column COLUMN, --label-column COLUMN",
    )


def check_row_limit(path: Path, rows: int) -> None:
    """Refuse a file with more rows than can be held in memory with their texts."""
    if rows > MAX_ROWS:
        raise DataError(f"{str(path)!r} has more than {MAX_ROWS:,} rows", unchanged=UNCHANGED)
