"""Text files as bytes of UTF-8, whatever they are packed and encoded in: every reader of text reads these.

A packed file is unpacked piece by piece, within a limit.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from lorabank.core.commands import Command
from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_UNPACKED
from lorabank.core.shelves import Shelf
from lorabank.data.bad_rows import UNCHANGED, BadRow
from lorabank.data.formats.encodings import (
    MARKS,
    UTF_8,
    Recoded,
    check_encoding,
    likely_encoding,
    looks_like_utf_8,
    unmarked_utf_16,
)

PACKED = ".gz"
_START = 1024
"""Bytes by which the encoding is told."""

_BINARY = {
    b"\x1f\x8b": "a file packed with gzip: its name must end in .gz",
    b"PK\x03\x04": "an Excel workbook or another ZIP file: its name must end in .xlsx, or unpack it",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as .xlsx or CSV",
    b"PAR1": "a Parquet file: its name must end in .parquet",
    b"%PDF": "a PDF file, and holds no rows",
}


class _Settings(Protocol):
    @property
    def delimiter(self) -> str | None: ...
    @property
    def encoding(self) -> str | None: ...
    @property
    def sheet(self) -> str | None: ...
    @property
    def skip_bad(self) -> bool: ...
    @property
    def set(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Reading:
    """What the user says about how a file is to be read; None is found out.

    Attributes:
        delimiter: Between the cells of a delimited file: a character, or its name.
        encoding: Of a text file without a byte order mark.
        sheet: Of a workbook.
        skip_bad: Whether bad rows are left out.
        set: ``KEY=VALUE`` for settings of the format's own.
        besides: Shelves whose methods' settings may stand in ``set`` too.
    """

    delimiter: str | None = None
    encoding: str | None = None
    sheet: str | None = None
    skip_bad: bool = False
    set: tuple[str, ...] = ()
    besides: tuple[Shelf, ...] = ()

    @staticmethod
    def of(settings: _Settings, besides: tuple[Shelf, ...] = ()) -> Reading:
        """What the settings of a command say."""
        return Reading(settings.delimiter, settings.encoding, settings.sheet, settings.skip_bad, settings.set, besides)


AS_IT_IS = Reading()


class TextFile:
    """A file of text.

    Args:
        path: The file; packed where its name ends in ``.gz``.
        reading: ``encoding`` is read.
    """

    def __init__(self, path: Path, reading: Reading = AS_IT_IS) -> None:
        self.path = path
        self._given = check_encoding(reading.encoding) if reading.encoding is not None else None

    @cached_property
    def encoding(self) -> str:
        """What its byte order mark says, or the user, or UTF-8."""
        with self._bytes() as file:
            start = file.read(_START)
        marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
        if not marked and not self._given and (likely := unmarked_utf_16(start)):
            raise BadFile(self.path, "line 1", "not UTF-8", hint=_named(likely))
        return marked or self._given or UTF_8

    @property
    def read_as(self) -> str:
        """The encoding in words; nothing where it is UTF-8."""
        return "" if self.encoding == UTF_8 else f"encoding {self.encoding}"

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its bytes as UTF-8; a byte order mark may stand before them.

        Raises:
            DataError: They unpack to too much, or are not of its encoding.
        """
        with self._bytes() as file:
            if self.encoding == UTF_8:
                yield file
            else:
                with io.BufferedReader(Recoded(file, self.encoding, self._not_encoded)) as recoded:
                    yield cast(BinaryIO, recoded)

    def undecodable(self, where: str) -> DataError:
        """The error for bytes that are not UTF-8: of one row where the rest of the file is, else of the whole file."""
        if self._meant_as_utf_8:
            return BadRow(self.path, where, "not UTF-8, as other lines of the file are")
        return BadFile(self.path, where, "not UTF-8", hint=self._proposal())

    @cached_property
    def _meant_as_utf_8(self) -> bool:
        with self._bytes() as file:
            return looks_like_utf_8(file)

    def _not_encoded(self, line: int) -> DataError:
        return BadFile(self.path, f"line {line}", f"not {self.encoding}", hint=self._proposal())

    def _proposal(self) -> str:
        with self._bytes() as file:
            start = file.read(4)
        kind = next((kind for magic, kind in _BINARY.items() if start.startswith(magic)), None)
        if kind:
            return f"it is {kind}"
        with self._bytes() as file:
            likely = likely_encoding(file)
        if likely and likely != self.encoding:
            return _named(likely)
        return "save the file as UTF-8, or name its encoding: --encoding NAME"

    @contextmanager
    def _bytes(self) -> Iterator[BinaryIO]:
        """The file unpacked."""
        with ExitStack() as stack:
            file = stack.enter_context(self.path.open("rb"))
            if self.path.suffix.lower() == PACKED:
                packed = stack.enter_context(gzip.GzipFile(fileobj=file))
                raw = _Unpacked(self.path, cast(BinaryIO, packed))
                file = stack.enter_context(io.BufferedReader(raw))
            yield file


def _named(likely: str) -> str:
    return f"it is probably {likely}: add --encoding {likely}"


class BadFile(DataError):
    """What is wrong at one place of a file and keeps all of it from being read."""

    def __init__(self, source: str | Path, where: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{str(source)!r}, {where}: {problem}", unchanged=UNCHANGED, hint=hint)


class _Unpacked(io.RawIOBase):
    """What a packed file unpacks to, counted."""

    def __init__(self, source: Path, file: BinaryIO) -> None:
        self._source = source
        self._file = file
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            part = self._file.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(
                f"{str(self._source)!r} is not a whole gzip file: {str(error).lower() or type(error).__name__}",
                unchanged=UNCHANGED,
                hint="fetch or pack it again",
            ) from error
        self._total += len(part)
        check_unpacked(self._source, self._total)
        buffer[: len(part)] = part
        return len(part)


def check_unpacked(source: str | Path, total: int) -> None:
    """Refuse a file that unpacks to more bytes than the limit allows."""
    if total > MAX_UNPACKED:
        raise DataError(
            f"{str(source)!r} unpacks to more than {MAX_UNPACKED:,} bytes",
            unchanged=UNCHANGED,
            hint="unpack it, or train on a part of the rows; limits names what is accepted",
            commands=[Command("limits")],
        )
