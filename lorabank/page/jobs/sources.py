"""Which files the page may read: what was uploaded to it, and what lies in folders that the operator named."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lorabank.core.shelves import FORMATS
from lorabank.data.formats.text_file import PACKED
from lorabank.page.errors import PageError

_SEVERAL = 8
"""All uploads together have at most so many times the size of the largest one."""
_MOST = 500
"""Files that are listed."""
_DEEP = 4
"""Folders below each other that are looked into for the list."""


class Upload(NamedTuple):
    """A file that was uploaded.

    Attributes:
        path: Where it lies: its name there is our own.
        name: What the user calls it; for people alone.
        bytes: Its size.
    """

    path: Path
    name: str
    bytes: int


class Sources:
    """The files that a training may be started on. It may be used from several threads.

    Args:
        folder: Where uploads lie.
        allowed: Folders of the operator.
        most: Bytes of the largest upload.
    """

    def __init__(self, folder: Path, allowed: Sequence[Path], most: int) -> None:
        self._folder = folder.resolve()
        self._allowed = tuple(path.resolve() for path in allowed)
        self._most = most
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()
        self._coming: dict[str, int] = {}

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the operator, without links in their paths."""
        return self._allowed

    @property
    def most(self) -> int:
        """Bytes of the largest upload."""
        return self._most

    def keep(self, name: str, data: bytes) -> Upload:
        """Keep an uploaded file under a name of our own.

        Args:
            name: What the user calls it; its ending says which format it has.
            data: Its content.

        Raises:
            PageError: No format has such an ending, it is empty or too large, or there is no room for it.
        """
        ending = _ending(name)
        if ending is None:
            raise PageError(
                422,
                "the ending of the file's name is of no known format",
                hint=f"use one of {', '.join(sorted(FORMATS))}",
            )
        if not data:
            raise PageError(422, "the file is empty, or no file was chosen")
        if len(data) > self._most:
            raise PageError(413, f"the file has more than {self._most} bytes", hint=_ELSEWHERE)
        path = self._folder / f"{secrets.token_hex(16)}{ending}"
        with self._reserved(path.name, len(data)):
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(data)
            except OSError as error:
                with suppress(OSError):  # a file system that cannot be written refuses this too
                    path.unlink()
                raise PageError(507, f"the file cannot be stored: {error.strerror}") from error
        self._names[path.name] = name[-200:]
        return Upload(path, self._names[path.name], len(data))

    @contextmanager
    def _reserved(self, name: str, size: int) -> Iterator[None]:
        """A block in which the bytes of one more upload count as taken, whatever of it is written.

        Raises:
            PageError: There is no room for it beside those that are there or being written.
        """
        with self._lock:
            there = {upload.path.name: upload.bytes for upload in self.uploads()}
            if sum((there | self._coming).values()) + size > _SEVERAL * self._most:
                raise PageError(413, "there is no room for more uploads", hint="delete those that are not needed")
            self._coming[name] = size
        try:
            yield
        finally:
            with self._lock:
                del self._coming[name]

    def uploads(self) -> list[Upload]:
        """What was uploaded, the newest last."""
        found = sorted(_regular(self._folder, 0), key=lambda one: one[1].st_mtime_ns)
        return [Upload(path, self._names.get(path.name, path.name), status.st_size) for path, status in found]

    def delete(self, name: str) -> None:
        """Delete an upload.

        Raises:
            PageError: There is none of this name.
        """
        found = next((one for one in self.uploads() if one.path.name == name), None)
        if found is None:
            raise PageError(404, "there is no such upload")
        found.path.unlink(missing_ok=True)

    def listed(self) -> list[Path]:
        """The files of a known format in the folders of the operator, the first ones by name."""
        found: list[Path] = []
        for folder in self._allowed:
            for path, _ in _regular(folder, _DEEP):
                if _ending(path.name):
                    found.append(path)
                if len(found) == _MOST:
                    return found
        return found

    def checked(self, text: str) -> Path:
        """A file that a user named, without links in its path.

        Raises:
            PageError: It does not lie in an allowed folder (whether or not it exists), or is not a file there.
        """
        try:
            path = Path(text).resolve() if os.path.isabs(text) else None
        except (OSError, ValueError, RuntimeError):  # a NUL character, or links in a circle
            path = None
        if path is None or not any(path.is_relative_to(folder) for folder in (self._folder, *self._allowed)):
            raise PageError(403, "the page may not read this file", hint=_ALLOWED)
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except OSError:
            regular = False
        if not regular:
            raise PageError(404, "there is no such file")
        return path

    def target(self, text: str) -> Path:
        """A folder that is to be written, without links in its path; it must not exist yet.

        Raises:
            PageError: It does not lie in a folder of the operator, or exists.
        """
        try:
            path = Path(text).resolve() if os.path.isabs(text) else None
        except (OSError, ValueError, RuntimeError):
            path = None
        if path is None or not any(folder in path.parents for folder in self._allowed):
            raise PageError(403, "the page may not write there", hint=_ALLOWED)
        if os.path.lexists(path):
            raise PageError(409, "there is something already", hint="name a folder that does not exist yet")
        return path


_ALLOWED = "name a file or folder, with its whole path, in a folder that the server was given with --data-folder"
_ELSEWHERE = "put it into a folder that the server was given with --data-folder"


def _ending(name: str) -> str | None:
    """The ending of a file's name, by which `add-task` knows its format; None where it is of none."""
    packed = PACKED if name.lower().endswith(PACKED) else ""
    plain = name.lower().removesuffix(packed)
    found = next((one for one in sorted(FORMATS, key=len, reverse=True) if plain.endswith(one)), None)
    return found and found + packed


def _regular(folder: Path, depth: int) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files in a folder and those below it, in order; links are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_file(follow_symlinks=False):
                yield Path(entry.path), entry.stat(follow_symlinks=False)
            elif depth and entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _regular(Path(entry.path), depth - 1)
        except OSError:
            continue
