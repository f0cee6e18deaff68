"""Parquet: the reader for users' files, and the bytes in which the bank keeps rows.

Ten kilobytes of Parquet can stand for gigabytes of cells. So a file is decoded in batches that are bounded by what its
page headers say, only the wanted columns, and the cells of a batch are measured before they become Python objects.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lorabank.core.commands import Command
from lorabank.core.errors import DamagedError, DataError
from lorabank.core.limits import MAX_LINE
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import Table, bad_row, check_row_limit, missing_column
from lorabank.data.formats.parquet_pages import check_footer, leaves, rows_at_a_time
from lorabank.data.formats.unsupported import unsupported
from lorabank.data.rows import Rows


class Parquet:
    """A Parquet file; dictionary-encoded columns are decoded.

    Every method raises DataError where the file is broken.
    """

    read_as = ""

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> tuple[str, ...]:
        """The top-level columns; only the footer is read."""
        with self.path.open("rb") as file, _opened(file, self.path) as parquet:
            return tuple(parquet.schema_arrow.names)

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of these columns as Python values, each row with its number from 1.

        Strings, integers, floats and booleans are read, and lists of structs (conversations); None stands for an
        optional column that is not there.

        Raises:
            DataError: A column is missing, appears twice or is of another type, or a limit is passed.
        """
        with self.path.open("rb") as file, _opened(file, self.path) as parquet:
            names = parquet.schema_arrow.names
            for column in columns:
                if column not in names:
                    raise missing_column(self.path, column, names)
            return _read(parquet, file, self.path, (*columns, *optional), kept=optional)


@contextmanager
def _opened(file: BinaryIO, source: str | Path) -> Iterator[Any]:
    """The file through pyarrow, whose errors become DataError."""
    import pyarrow as pa

    try:
        check_footer(file, source)
        yield _through_pyarrow(file)
    except MemoryError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, OSError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{str(source)!r} is not a readable Parquet file: {reason}"
        raise DataError(message, unchanged=UNCHANGED) from error


def _through_pyarrow(file: BinaryIO, **options: Any) -> Any:
    import pyarrow.parquet as pq

    # A chunk of a column is read piece by piece, not at once: a sparse file has chunks of any size.
    return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, **options)


def _read(
    parquet: Any, file: BinaryIO, source: str | Path, columns: tuple[str, ...], kept: Sequence[str] = ()
) -> Table:
    """The columns, None in the place of one that is not there; those that are only kept may hold other values too."""
    schema, footer = parquet.schema_arrow, parquet.metadata
    present = [column for column in dict.fromkeys(columns) if column in schema.names]
    for column in present:
        twins = [name for name in schema.names if name == column or name.startswith(f"{column}.")]
        if len(twins) > 1:  # pyarrow reads both by the name of the first
            what = "appears twice" if twins[0] == twins[1] else f"cannot be told apart from {twins[-1]!r}"
            raise DataError(f"{str(source)!r}: the column {column!r} {what}", unchanged=UNCHANGED)
        _check_type(source, column, schema.field(column).type, kept=column in kept)
    check_row_limit(source, footer.num_rows)
    found = [index for column in present for index in leaves(footer, column)]
    sizes = rows_at_a_time(file, footer, found, source)
    if nested := [path.path for index in found if (path := footer.schema.column(index)).max_repetition_level]:
        parquet = _through_pyarrow(file, metadata=footer, read_dictionary=nested)
    table = Table(str(source), columns, unit="row")
    for group, rows in enumerate(sizes):
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=present, use_threads=False):
            _take(table, batch)
    return table


def _take(table: Table, batch: Any) -> None:
    """Add a batch, in parts whose cells are small enough to be made into Python objects at a time."""
    import numpy as np

    if not batch.num_rows:
        return
    held = sum((cell_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    first = len(table.rows) + 1
    if held.max() > MAX_LINE:
        row = int((held > MAX_LINE).argmax())
        problem = f"its cells have {held[row]:,} bytes; {MAX_LINE:,} is the limit"
        raise bad_row(table.source, f"row {first + row}", problem, commands=[Command("limits")])
    parts = np.flatnonzero(np.diff(np.cumsum(held) // MAX_LINE)) + 1
    places = {name: place for place, name in enumerate(batch.schema.names)}
    for start, end in zip([0, *parts], [*parts, batch.num_rows], strict=True):
        part = [column.slice(start, end - start).to_pylist() for column in batch.columns]
        empty = [None] * (end - start)
        cells = [part[places[name]] if name in places else empty for name in table.columns]
        for values in zip(*cells, strict=True):
            table.add(len(table.rows) + 1, values)


def cell_sizes(array: Any) -> Any:
    """Bytes of each cell, as a NumPy array: what the texts in it have as UTF-8, and a little for anything else."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    type_ = array.type
    if kinds.is_dictionary(type_):
        known = pa.array(cell_sizes(array.dictionary), pa.int64())
        return known.take(array.indices).fill_null(0).to_numpy(zero_copy_only=False)
    if kinds.is_string_view(type_):
        array = array.cast(pa.large_string())
        type_ = array.type
    if kinds.is_string(type_) or kinds.is_large_string(type_):
        return pc.binary_length(array).fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False)
    if kinds.is_struct(type_):
        fields = [array.field(index) for index in range(type_.num_fields)]
        return sum((cell_sizes(cells) + _VALUE for cells in fields), np.full(len(array), _VALUE, np.int64))
    if kinds.is_list(type_) or kinds.is_large_list(type_):
        ends = np.concatenate([[0], np.cumsum(cell_sizes(array.values) + _VALUE)])
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return ends[offsets[1:]] - ends[offsets[:-1]] + _VALUE
    return np.full(len(array), _VALUE, np.int64)


_VALUE = 3
"""Bytes that a value has at least as JSON."""


def _check_type(source: str | Path, column: str, type_: Any, *, kept: bool) -> None:
    import pyarrow.types as kinds

    if kept and _is_bounded(type_):
        return
    value = type_.value_type if kinds.is_dictionary(type_) else type_
    listed = kinds.is_list(value) or kinds.is_large_list(value)
    conversations = listed and kinds.is_struct(value.value_type) and _is_bounded(value)
    numbers = kinds.is_integer(value) or kinds.is_floating(value) or kinds.is_boolean(value)
    if listed and not kinds.is_struct(value.value_type):
        kind = "several labels for a text (multi-label) and token labels are"
        raise unsupported(str(source), kind, f"the column {column!r} holds {type_}")
    if not (_is_text(value) or numbers or conversations):
        raise DataError(
            f"{str(source)!r}: the column {column!r} holds {type_}; expected strings, integers or booleans",
            unchanged=UNCHANGED,
            hint="name another column: --text-column COLUMN, --label-column COLUMN",
        )


def _is_text(type_: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_string(type_) or kinds.is_large_string(type_) or kinds.is_string_view(type_))


def _is_bounded(type_: Any) -> bool:
    """Whether a nested value takes no more than its pages hold: a missing one of a fixed size takes that size."""
    import pyarrow.types as kinds

    if kinds.is_struct(type_):
        return all(_is_bounded(type_.field(index).type) for index in range(type_.num_fields))
    if kinds.is_list(type_) or kinds.is_large_list(type_) or kinds.is_dictionary(type_):
        return _is_bounded(type_.value_type)
    return bool(_is_text(type_) or kinds.is_primitive(type_) or kinds.is_null(type_))


def to_parquet(rows: Rows) -> bytes:
    """Rows as Parquet bytes that depend on the texts and labels alone.

    Args:
        rows: The rows; where they came from is not written.

    Returns:
        The same bytes for the same rows (with one version of pyarrow).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"text": pa.array(rows.texts, pa.large_string())}
    if rows.labels:
        columns["label"] = pa.array(rows.labels, pa.large_string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", use_dictionary=False, store_schema=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(data: bytes) -> Rows:
    """The rows that ``to_parquet`` wrote; ``lines`` are row numbers from 1.

    The bytes may be a stranger's: they are decoded within the same limits as a user's file.

    Raises:
        DamagedError: The bytes are not such a file, a limit is passed, or a cell is missing or is not UTF-8.
    """
    file = io.BytesIO(data)
    try:
        with _opened(file, _STORED) as parquet:
            names = tuple(parquet.schema_arrow.names)
            if names not in (("text",), ("text", "label")):
                raise DataError(f"{_STORED!r} have the columns {', '.join(names)[:80]!r}")
            table = _read(parquet, file, _STORED, names)
    except DataError as error:
        raise DamagedError(f"stored rows cannot be read: {error.message}") from error
    for number, row in enumerate(table.rows, start=1):
        if not all(isinstance(cell, str) for cell in row):
            raise DamagedError(f"stored rows cannot be read: row {number} holds no text")
    columns: list[tuple[Any, ...]] = list(zip(*table.rows, strict=True)) or [() for _ in names]
    return Rows(
        texts=columns[0],
        labels=columns[1] if len(columns) > 1 else (),
        source="the bank",
        columns=names,
        lines=tuple(table.lines),
    )


_STORED = "stored rows"
