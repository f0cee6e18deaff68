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
from typing import BinaryIO, ClassVar, cast

from lorabank.core.commands import Command
from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_UNPACKED
from lorabank.core.settings import setting
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


@dataclass(frozen=True)
class TextFormat:
    """What all formats of text have: a file may be packed, and has an encoding.

    Called with a path, a format gives the reader of the file (`lorabank.data.formats.base.Format`).
    """

    packed: ClassVar[bool] = True

    encoding: str | None = setting(
        None, "Encoding of the file, such as cp1252; default: UTF-8, or what its byte-order mark says."
    )


class TextFile:
    """A file of text.

    Args:
        path: The file; packed where its name ends in ``.gz``.
        encoding: What the user says of it, where there is no byte order mark.

    Raises:
        ConfigError: There is no such encoding of text.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self._given = check_encoding(encoding) if encoding is not None else None

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
            return BadRow(self.path, where, "not UTF-8, unlike other lines of the file")
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
        return "save the file as UTF-8, or name its encoding: --set encoding=NAME"

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
    return f"it is probably {likely}: add --set encoding={likely}"


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
                f"{str(self._source)!r} is not a complete gzip file: {str(error).lower() or type(error).__name__}",
                unchanged=UNCHANGED,
                hint="download or compress it again",
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
