"""Which encoding a text file has: said by its byte order mark, by the user, or UTF-8; never guessed without a word.

What a file that is none of these probably is goes into the hint of its refusal.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import BinaryIO

from lorabank.core.errors import ConfigError
from lorabank.core.settings import nearest

UTF_8 = "utf-8"
MARKS = {
    codecs.BOM_UTF8: UTF_8,
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_LIKELY = (
    "cp1252", "utf_16_le", "utf_16_be", "shift_jis", "cp932", "gb18030", "big5", "euc_jp", "cp949", "cp1251", "koi8_r",
    "cp1250", "cp1253", "cp1254", "cp1255", "cp1256", "mac_roman", "cp850", "latin_1",
)  # fmt: skip
"""What files are written in, by Windows, Excel and old systems; of those that fit equally the first is named."""

_NO_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7", "mbcs", "oem")
_SAMPLE = 64 * 1024
_CHUNK = 64 * 1024
_JUDGED = 64 * 1024**2
"""Bytes of a file that are looked at for its encoding."""


def check_encoding(name: str) -> str:
    """A name as Python knows it, for example ``cp1252`` for ``windows-1252``.

    Raises:
        ConfigError: There is no such encoding of text.
    """
    codec = _codec(name)
    if codec is None:
        from encodings.aliases import aliases

        known = {name.replace("_", "-") for names in aliases.items() for name in names if _codec(name)}
        raise ConfigError(
            f"encoding: unknown text encoding {name[:80]!r}{nearest(name, sorted(known))}",
            hint="--set encoding=cp1252, or another one: utf-8, utf-16, latin-1, cp1251, gb18030, shift_jis",
            unchanged="nothing was changed",
        )
    return codec.name


def _codec(name: str) -> codecs.CodecInfo | None:
    """The codec of a name that files of text are written in, None where there is none."""
    try:
        codec = codecs.lookup(name)
        codec.incrementaldecoder()
    except (LookupError, TypeError, ValueError):
        return None
    return codec if codec._is_text_encoding and codec.name not in _NO_FILES else None


class Recoded(io.RawIOBase):
    """The bytes of a file of another encoding as UTF-8, without a byte order mark; a part of it lies in memory.

    Args:
        file: The bytes.
        encoding: Their encoding.
        refuse: Called with the line, from 1, at which they are not of it; gives the error.
    """

    def __init__(self, file: BinaryIO, encoding: str, refuse: Callable[[int], Exception]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._refuse = refuse
        self._left = b""
        self._line = 1
        self._begun = self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer."""
        while not self._left and not self._ended:
            raw = self._file.read(_CHUNK)
            self._ended = not raw
            try:
                text = self._decoder.decode(raw, final=self._ended)
                if not self._begun and text:
                    text, self._begun = text.removeprefix("\ufeff"), True
                self._left = text.encode()
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(error.encoding, "replace").count("\n")
                raise self._refuse(self._line + before) from error
            except UnicodeEncodeError as error:
                raise self._refuse(self._line + text.count("\n", 0, error.start)) from error
            except UnicodeError as error:  # without a place: utf-16 and utf-32 need a byte order mark
                raise self._refuse(self._line) from error
            self._line += text.count("\n")
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def unmarked_utf_16(start: bytes) -> str | None:
    """UTF-16 without a byte order mark, seen by NUL bytes in every second place; its ASCII would pass for UTF-8."""
    pairs = len(start) // 2
    first, second = (start[place : 2 * pairs : 2].count(0) for place in (0, 1))
    if pairs < 8 or max(first, second) < 0.3 * pairs or min(first, second) > 0.1 * pairs:
        return None
    return "utf-16-be" if first > second else "utf-16-le"


def looks_like_utf_8(file: BinaryIO) -> bool:
    """Whether a file that is not UTF-8 throughout was meant to be: most of its lines that are not ASCII are."""
    good = bad = read = 0
    decoder = codecs.getincrementaldecoder(UTF_8)()  # a part of a long line may end in the middle of a character
    while read < _JUDGED and (part := file.readline(_CHUNK)):
        read += len(part)
        try:
            decoder.decode(part, final=part.endswith(b"\n"))
            good += not part.isascii()
        except UnicodeDecodeError:
            decoder.reset()
            bad += 1
    return good > bad


def likely_encoding(file: BinaryIO) -> str | None:
    """The name of the encoding that the bytes of a file most likely have, None where no guess is any good."""
    from charset_normalizer import from_bytes

    start = file.read(_SAMPLE)
    sample = start
    if b"\0" not in start:
        lines = iter(start.splitlines(keepends=True))
        sample = b"".join(line for line in lines if not line.isascii())
        read = 0
        while len(sample) < _SAMPLE and read < _JUDGED and (line := file.readline(_SAMPLE)):
            sample += b"" if line.isascii() else line
            read += len(line)
    found = list(from_bytes(sample, cp_isolation=list(_LIKELY), enable_fallback=False))
    best = {str(match) for match in found if match.chaos <= found[0].chaos}  # it gives equal texts once
    chosen = next((name for name in _LIKELY if _decoded(sample, name) in best), None)
    if chosen is None:
        return None
    return chosen.replace("_", "-") if chosen.startswith(("utf", "latin", "euc", "koi8", "mac")) else chosen


def _decoded(sample: bytes, name: str) -> str | None:
    try:
        return sample.decode(name)
    except UnicodeDecodeError:
        return None
