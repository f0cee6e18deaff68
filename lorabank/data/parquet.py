"""Parquet: the reader for users' files, and the bytes in which the bank keeps rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorabank.core.errors import DamagedError, DataError
from lorabank.data.formats import UNCHANGED, Table, check_row_limit, missing_column
from lorabank.data.rows import Rows


def read_parquet(path: Path, columns: Sequence[str]) -> Table:
    """Read the wanted columns of a Parquet file; dictionary-encoded columns are decoded.

    Args:
        path: The file.
        columns: Names of top-level columns of strings, integers, floats or booleans.

    Returns:
        The cells as Python values, each with its row number from 1.

    Raises:
        DataError: The file is broken, or a column is missing or of another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in columns:
                if column not in names:
                    raise missing_column(path, column, names)
                if names.count(column) > 1:
                    raise DataError(f"{str(path)!r}: the column {column!r} stands twice", unchanged=UNCHANGED)
                _check_type(path, column, file.schema_arrow.field(column).type)
            check_row_limit(path, file.metadata.num_rows)
            table = file.read(columns=list(dict.fromkeys(columns)))
            cells = [table.column(column).to_pylist() for column in columns]
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{str(path)!r} is not a readable Parquet file: {reason}", unchanged=UNCHANGED) from error
    rows = list(zip(*cells, strict=True))
    return Table(columns=tuple(columns), unit="row", lines=list(range(1, len(rows) + 1)), rows=rows)


def _check_type(path: Path, column: str, type_: Any) -> None:
    import pyarrow.types as kinds

    value = type_.value_type if kinds.is_dictionary(type_) else type_
    strings = kinds.is_string(value) or kinds.is_large_string(value) or kinds.is_string_view(value)
    if not (strings or kinds.is_integer(value) or kinds.is_floating(value) or kinds.is_boolean(value)):
        raise DataError(
            f"{str(path)!r}: the column {column!r} holds {type_}; expected strings, integers or booleans",
            unchanged=UNCHANGED,
            hint="name another column: --text-column COLUMN, --label-column COLUMN",
        )


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

    Raises:
        DamagedError: The bytes are not such a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
        columns = {name: tuple(table.column(name).to_pylist()) for name in table.column_names}
        texts = columns["text"]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DamagedError(f"stored rows cannot be read: {error}", hint="lorabank verify --full") from error
    return Rows(
        texts=texts,
        labels=columns.get("label", ()),
        source="the bank",
        columns=tuple(columns),
        lines=tuple(range(1, len(texts) + 1)),
    )
