"""Parquet: the reader for users' files, and the bytes in which the bank keeps rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabank.core.errors import DamagedError, DataError
from lorabank.data.formats import UNCHANGED, Table, check_row_limit, missing_column
from lorabank.data.rows import Rows


class Parquet:
    """A Parquet file; dictionary-encoded columns are decoded.

    Every method raises DataError where the file is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> tuple[str, ...]:
        """The top-level columns; only the footer is read."""
        with self._opened() as file:
            return tuple(file.schema_arrow.names)

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of these columns as Python values, each row with its number from 1.

        Strings, integers, floats and booleans are read, and lists of structs (conversations); None stands for an
        optional column that is not there.

        Raises:
            DataError: A column is missing, stands twice or is of another type.
        """
        with self._opened() as file:
            names = file.schema_arrow.names
            wanted = (*columns, *(column for column in optional if column in names))
            for column in wanted:
                if column not in names:
                    raise missing_column(self.path, column, names)
                if names.count(column) > 1:
                    raise DataError(f"{str(self.path)!r}: the column {column!r} stands twice", unchanged=UNCHANGED)
                _check_type(self.path, column, file.schema_arrow.field(column).type)
            check_row_limit(self.path, file.metadata.num_rows)
            table = file.read(columns=list(dict.fromkeys(wanted)))
            empty = [None] * table.num_rows
            present = table.column_names
            cells = [
                table.column(column).to_pylist() if column in present else empty for column in (*columns, *optional)
            ]
        rows = list(zip(*cells, strict=True))
        return Table(columns=(*columns, *optional), unit="row", lines=list(range(1, len(rows) + 1)), rows=rows)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"{str(self.path)!r} is not a readable Parquet file: {reason}"
            raise DataError(message, unchanged=UNCHANGED) from error


def _check_type(path: Path, column: str, type_: Any) -> None:
    import pyarrow.types as kinds

    value = type_.value_type if kinds.is_dictionary(type_) else type_
    strings = kinds.is_string(value) or kinds.is_large_string(value) or kinds.is_string_view(value)
    listed = kinds.is_list(value) or kinds.is_large_list(value)
    conversations = listed and kinds.is_struct(value.value_type)
    numbers = kinds.is_integer(value) or kinds.is_floating(value) or kinds.is_boolean(value)
    if not (strings or numbers or conversations):
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
