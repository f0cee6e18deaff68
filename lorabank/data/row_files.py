"""Files of rows that lorabank writes: one writer for each form, each given a part of the rows at a time."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lorabank.core.errors import ConfigError
from lorabank.core.settings import nearest

FORMS = ("jsonl", "csv", "tsv", "parquet")

Rows = Sequence[Sequence[object]]
Write = Callable[[Rows], None]


def form_of(target: Path, given: str | None) -> str:
    """The form of a file: what is given, or the ending of its name.

    Raises:
        ConfigError: The ending is that of no form.
    """
    ending = target.suffix.lower().removeprefix(".")
    form = given or ending
    if form not in FORMS:
        raise ConfigError(
            f"{str(target)!r}: no file format ends in {ending!r}{nearest(ending, list(FORMS))}"
            if ending
            else f"{str(target)!r} has no ending that tells its format",
            hint=f"end it in {', '.join(f'.{form}' for form in FORMS)}, or name the format: --format csv",
            unchanged="nothing was written",
        )
    return form


@contextmanager
def row_writer(
    form: str, file: BinaryIO, columns: Sequence[str], like: Mapping[str, Sequence[object]]
) -> Iterator[Write]:
    """What takes rows and writes them in a form; the file is whole when the block ends.

    Args:
        form: One of ``FORMS``.
        file: Where they go.
        columns: The names of the columns.
        like: For each column the cells by which its type is told, where the form has types.
    """
    if form == "parquet":
        with _parquet(file, columns, like) as write:
            yield write
    elif form == "jsonl":
        yield lambda rows: _write(file, (as_json(columns, row) for row in rows))
    else:
        delimiter = "\t" if form == "tsv" else ","
        _write(file, [as_line(columns, delimiter)])
        yield lambda rows: _write(file, (as_line(row, delimiter) for row in rows))


def as_line(row: Sequence[object], delimiter: str) -> str:
    """A row of a delimited file, with its line feed; a cell is quoted where it must be."""
    cells = [_text(cell) for cell in row]
    line = io.StringIO(newline="")
    # Python quotes a carriage return only where lines end with one.
    end = "\r\n" if any("\r" in cell for cell in cells) else "\n"
    csv.writer(line, delimiter=delimiter, lineterminator=end).writerow(cells)
    return line.getvalue().removesuffix(end) + "\n"


def as_json(columns: Sequence[str], row: Sequence[object], *, ascii_only: bool = False) -> str:
    """A row as an object on one line, with its line feed."""
    cells = {column: _finite(cell) for column, cell in zip(columns, row, strict=True)}
    return json.dumps(cells, ensure_ascii=ascii_only, default=str) + "\n"


def _write(file: BinaryIO, lines: Iterator[str] | Sequence[str]) -> None:
    for line in lines:
        file.write(line.encode("utf-8", "backslashreplace"))  # a lone surrogate, which UTF-8 lacks, as its escape


def _text(cell: object) -> str:
    """A cell as a string: what stands in a file of strings as it is, and no word for nothing."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, list | dict):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return str(cell)


def _finite(cell: object) -> object:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


@contextmanager
def _parquet(file: BinaryIO, columns: Sequence[str], like: Mapping[str, Sequence[object]]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, _type(like[column])) for column in columns])

    def write(rows: Rows) -> None:
        arrays = []
        for field, cells in zip(schema, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True):
            plain = pa.types.is_string(field.type)
            arrays.append(pa.array([_string(cell) for cell in cells] if plain else cells, field.type))
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield write


def _type(cells: Sequence[object]) -> Any:
    """The type that fits all cells; strings where there is none."""
    import pyarrow as pa

    try:
        found = pa.infer_type(cells)
        pa.array(cells, found)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.string()
    return pa.string() if pa.types.is_null(found) else found


def _string(cell: object) -> str | None:
    return None if cell is None else _text(cell).encode("utf-8", "backslashreplace").decode()
