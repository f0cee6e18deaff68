"""The three standard streams of the process: what a closed, full or abandoned one does is decided here.

A closed one is replaced before anything else is opened: the next file, which may be the database, would get its number
and with it whatever a library prints.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

STDIN = "standard input"


class ReaderGone(Exception):
    """Nobody reads standard output any more; no OSError, of which click would make another exit code."""


class _Descriptor(io.RawIOBase):
    """Bytes to a standard stream; after an error the rest is dropped, so that nobody complains once more."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._broken = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        while not self._broken:
            try:
                return os.write(self._number, data)
            except (
                BlockingIOError
            ):  # whoever started this process, or shares the stream, made it one that does not wait
                self._wait()
            except OSError as error:
                self._broken = True
                self._tell(error)
        return len(data)

    def _wait(self) -> None:
        """Until the reader has made room, or is gone."""
        import select

        waiting = select.poll()
        waiting.register(self._number, select.POLLOUT)
        waiting.poll()

    def _tell(self, error: OSError) -> None:
        """Nothing for standard error: there is nobody to tell, and the work is worth more than its messages."""


class _Output(_Descriptor):
    def _tell(self, error: OSError) -> None:
        from lorabank.core.errors import StorageError
        from lorabank.core.machine.exhaustion import KEPT

        if error.errno == errno.EPIPE:
            raise ReaderGone from error
        message, hint = f"standard output: {error.strerror}", "send it elsewhere: --json > FILE"
        raise StorageError(message, hint=hint, unchanged=KEPT) from error


def open_streams() -> None:
    """Make all three usable, whatever the process was started with."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (as long as the process)
    sys.stdout = _writer(_Output(1), sys.stdout)
    sys.stderr = _writer(_Descriptor(2), sys.stderr)


def _writer(raw: _Descriptor, before: Any) -> io.TextIOWrapper:
    """A text stream in the encoding of the one before; what that lacks is shown as an escape."""
    encoding = before.encoding if before else "utf-8"
    lines = raw.isatty() or raw.fileno() == 2
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=lines)


def given_texts(words: Sequence[str]) -> tuple[str, ...]:
    """The texts of a command: its arguments, or with ``-`` alone one a line from standard input.

    Raises:
        ConfigError: An argument is not UTF-8.
        DataError: Standard input is not UTF-8, or holds what no file of texts may hold.
    """
    if tuple(words) == ("-",):
        from lorabank.data.formats.lines import read_texts

        return read_texts(cast(BinaryIO, bytes_of(sys.stdin)), STDIN)
    return tuple(_utf8(word, place) for place, word in enumerate(words, start=1))


def bytes_of(stream: Any) -> io.BufferedIOBase:
    """The bytes of a text stream, whatever the locale took them for."""
    binary: io.BufferedIOBase = getattr(stream, "buffer", None) or io.BytesIO(
        stream.read().encode("utf-8", "surrogatepass")
    )
    return binary


def _utf8(word: str, place: int) -> str:
    """An argument as UTF-8: Python decodes it as the locale says, and keeps what does not fit as surrogates."""
    from lorabank.core.errors import ConfigError

    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeEncodeError:  # not from the command line of this process
        return word
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"text {place} is not UTF-8: byte {error.start + 1} of {word[:80]!r}",
            hint="give the texts in a file: --data FILE",
            unchanged="nothing was changed",
        ) from None
