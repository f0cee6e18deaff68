"""What the pages of a Parquet file decode to, read from their headers before a page is decoded.

The footer and the metadata of a row group only claim sizes. What the decoder really allocates follows from the header
of each page (Thrift, compact protocol): how many bytes the page unpacks to, and how many values it holds. A page never
unpacks to more than its header says, so the headers alone tell whether a file can be read within the limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_DECODED, MAX_FOOTER, MAX_PAGE, MAX_ROWS
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import too_much

BATCH = 64 * 1024**2
"""Bytes that are decoded at a time, beside the largest page."""

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_VALUES_IN = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # the field of a page header that describes its values
_ENCODING_IN = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
_DELTA_BYTE_ARRAY = 7
_WINDOW, _MAX_HEADER = 1 << 10, 1 << 22  # a header holds the least and the greatest value, which may be long
_PADDING = 100  # some old writers count a chunk's bytes without its dictionary's header; pyarrow reads so much more


class Page(NamedTuple):
    """The header of a page.

    Attributes:
        kind: Thrift's number of its type.
        size: Bytes that it unpacks to.
        packed: Bytes in the file, behind the header.
        values: How many values it holds.
        encoding: Thrift's number of how they are written.
        length: Bytes of the header.
    """

    kind: int
    size: int
    packed: int
    values: int
    encoding: int
    length: int


def check_footer(file: BinaryIO, source: str | Path) -> None:
    """Refuse a file whose footer alone would take too much memory.

    Raises:
        DataError: Its length is over the limit.
    """
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    length = int.from_bytes(file.read(4), "little")
    file.seek(0)
    if MAX_FOOTER < length <= size:  # a length beyond the file is no Parquet, which pyarrow says
        raise too_much(source, f"its footer has {length:,} bytes; {MAX_FOOTER:,} is the limit")


def leaves(metadata: Any, column: str) -> list[int]:
    """Numbers of the physical columns below a top-level one; pyarrow reads by name all that this finds."""
    paths = [metadata.schema.column(index).path for index in range(len(metadata.schema))]
    return [index for index, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]


def rows_at_a_time(file: BinaryIO, metadata: Any, columns: Iterable[int], source: str | Path) -> list[int]:
    """How many rows of each row group can be decoded at a time, whatever its pages unpack to.

    Args:
        file: The Parquet file.
        metadata: Its footer, as pyarrow gives it.
        columns: Numbers of the physical columns that will be decoded; the texts inside of lists with their
            dictionaries kept, since a single row may repeat them any number of times.
        source: The file's name, for messages.

    Returns:
        A number of at least 1 for each row group.

    Raises:
        DataError: A page, a column or all pages together are over a limit, or a page header is broken.
    """
    walk = _Walk(file, source)
    nested = {index: metadata.schema.column(index).max_repetition_level > 0 for index in columns}
    return [walk.rows_of(metadata.row_group(index), nested) for index in range(metadata.num_row_groups)]


class _Walk:
    """Goes over the page headers of a file and adds up what they say."""

    def __init__(self, file: BinaryIO, source: str | Path) -> None:
        self.file = file
        self.source = source
        self.size = file.seek(0, 2)
        self.bytes = 0
        self.values: Counter[int] = Counter()

    def rows_of(self, group: Any, columns: Mapping[int, bool]) -> int:
        """Rows of a row group that take at most a batch; for each column, whether it lies in lists."""
        total = widest = 0
        for column, nested in columns.items():
            chunk = group.column(column)
            repeated = 0
            for page in self._read(chunk):
                self._count(column, page, chunk.path_in_schema)
                total += page.size
                widest = max(widest, page.size, page.packed)
                if nested and page.encoding == _DELTA_BYTE_ARRAY:
                    self._check("a page of lists may repeat", page.size * page.values, MAX_DECODED, "bytes")
                elif not nested and (page.kind == _DICTIONARY or page.encoding == _DELTA_BYTE_ARRAY):
                    repeated = max(repeated, page.size)  # each value may be as long as the page
            total += (repeated + 8) * chunk.num_values
        return max(1, min(group.num_rows, MAX_ROWS) if total <= BATCH else BATCH // max(widest, 1))

    def _count(self, column: int, page: Page, path: str) -> None:
        if page.kind != _DICTIONARY:
            self.values[column] += max(page.values, 1)  # a page of nothing takes its time too
        self._check(f"the column {path!r} holds", max(self.values[column], page.values), MAX_ROWS, "values")

    def _read(self, chunk: Any) -> Iterator[Page]:
        """The pages that pyarrow would read: until all values have been seen, or the chunk ends."""
        at = chunk.data_page_offset
        if 0 < (chunk.dictionary_page_offset or 0) < at:
            at = chunk.dictionary_page_offset
        end = min(self.size, at + chunk.total_compressed_size + _PADDING)
        seen = 0
        while seen < chunk.num_values and 0 <= at < end:
            page = _header_at(self.file, at, self.source)
            at += page.length + page.packed
            self.bytes += page.size
            where = f"a page of the column {chunk.path_in_schema!r} unpacks to"
            self._check(where, max(page.size, page.packed), MAX_PAGE, "bytes")
            self._check("its pages unpack to", self.bytes, MAX_DECODED, "bytes")
            if page.kind in (_DATA, _DATA_V2):
                seen += page.values
            yield page

    def _check(self, what: str, count: int, limit: int, unit: str) -> None:
        if count > limit:
            raise too_much(self.source, f"{what} {count:,} {unit}; {limit:,} is the limit")


def _header_at(file: BinaryIO, at: int, source: str | Path) -> Page:
    window = _WINDOW
    while True:
        file.seek(at)
        data = file.read(window)
        try:
            page = _header(_Compact(data))
        except IndexError:
            if len(data) == window and window < _MAX_HEADER:
                window *= 4
                continue
            page = None
        except (ValueError, RecursionError):
            page = None
        if page is None or min(page.size, page.packed, page.values) < 0:
            raise DataError(
                f"{str(source)!r} is not a readable Parquet file: a page header is broken", unchanged=UNCHANGED
            )
        return page


def _header(reader: _Compact) -> Page:
    numbers = {1: -1, 2: -1, 3: -1}
    inner: dict[int, dict[int, int]] = {}
    for field, kind in reader.fields():
        if field in numbers and kind == _I32:
            numbers[field] = reader.int32()
        elif field in _VALUES_IN.values() and kind == _STRUCT:
            inner[field] = {}
            for name, inner_kind in reader.fields():
                if inner_kind == _I32:
                    inner[field][name] = reader.int32()
                else:
                    reader.skip(inner_kind)
        else:
            reader.skip(kind)
    page_kind, size, packed = numbers.values()
    described = inner.get(_VALUES_IN.get(page_kind, -1), {})
    values = described.get(1, -1 if page_kind in _VALUES_IN else 0)
    return Page(page_kind, size, packed, values, described.get(_ENCODING_IN.get(page_kind, -1), -1), reader.at)


# ---------------------------------------------------------------------------------------- Thrift's compact protocol

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 32


class _Compact:
    """Reads one struct; IndexError where the bytes end too early, ValueError where they are none of Thrift's."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number has too many bytes")

    def int32(self) -> int:
        value = self.varint() & 0xFFFFFFFF
        return (value >> 1) ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and kind of each field; whoever iterates reads or skips its value."""
        number = 0
        while head := self.byte():
            kind = head & 0x0F
            number = number + (head >> 4) if head >> 4 else self.int32()
            yield number, kind

    def skip(self, kind: int, depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if kind in (_TRUE, _FALSE):  # the kind is the value
            return
        if kind in (_BYTE, _DOUBLE, _BINARY):
            length = self.varint() if kind == _BINARY else 8 if kind == _DOUBLE else 1
            self.at += length
            if self.at > len(self.data):
                raise IndexError
        elif kind in (_I16, _I32, _I64):
            self.varint()
        elif kind in (_LIST, _SET):
            head = self.byte()
            count = head >> 4 if head >> 4 != 15 else self.varint()
            self._skip_items(count, (head & 0x0F,), depth)
        elif kind == _MAP:
            count = self.varint()
            kinds = self.byte() if count else 0
            self._skip_items(count, (kinds >> 4, kinds & 0x0F), depth)
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        else:
            raise ValueError("an unknown kind of field")

    def _skip_items(self, count: int, kinds: tuple[int, ...], depth: int) -> None:
        for _ in range(count):
            for kind in kinds:
                self.skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)
