"""Objects in the bank's folder: ``adapters/<digest>/`` and ``blobs/<two digits>/<digest>``."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from lorabank.bank.objects.base import Kept, StoredFile
from lorabank.bank.objects.layout import DIGEST, OPERATION_ID, Layout
from lorabank.bank.objects.open_regular import open_plain
from lorabank.bank.objects.store import Stage, adapter_problems, blob_problems, content_problems, strangers
from lorabank.core.errors import DamagedError

_TRASHED = rf"[0-9a-f]{{16}}-(?:{DIGEST}|{OPERATION_ID})"


class FolderObjects:
    """The objects of a bank in its own folder; see `lorabank.bank.objects.base.Objects`.

    Args:
        layout: Where the bank is.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def stage(self, change: str) -> Stage:
        """A folder in ``staging/``."""
        return Stage(self._layout, change)

    def holds(self, kind: Literal["adapter", "blob"], digest: str) -> bool:
        """Whether something lies under the digest."""
        if kind == "adapter":
            return self._layout.adapter(digest).is_dir()
        return self._layout.blob(digest).is_file()

    def local(self, digest: str) -> Path:
        """The adapter's folder, where it lies."""
        return self._layout.adapter(digest)

    def get(self, digest: str) -> bytes:
        """The content of a blob, after its SHA-256 was compared."""
        path = self._layout.blob(digest)
        try:
            with open_plain(path) as file:
                content = file.read()
        except OSError as error:
            raise DamagedError(f"blob {path}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedError(f"blob {path}: its content is not what was stored")
        return content

    def adapter_problems(
        self, digest: str, files: Sequence[StoredFile], *, full: bool = True, strict: bool = False
    ) -> list[str]:
        """What is wrong with an adapter's folder."""
        folder = self._layout.adapter(digest)
        problems = adapter_problems(folder, files, full=full)
        if strict and not problems:
            problems = [f"{name[:80]!r} does not belong to the adapter" for name in strangers(folder, files)]
        if strict and full and not problems:
            problems = [problem for file in files for problem in content_problems(folder / file.name)]
        return problems

    def blob_problems(self, file: StoredFile, *, full: bool = True, strict: bool = False) -> list[str]:
        """What is wrong with a blob's file."""
        path = self._layout.blob(file.sha256)
        return blob_problems(path, file, full=full) or (content_problems(path) if strict and full else [])

    def list(self) -> Iterator[Kept]:
        """Adapters, blobs and trash by names that are lorabank's: anything else was not put there by it."""
        root = self._layout.root
        parts = [entry.name for entry in _entries(root / "blobs") if len(entry.name) == 2]
        places: list[tuple[Literal["adapter", "blob", "debris"], str, str]] = [
            ("adapter", "adapters", DIGEST),
            *(("blob", f"blobs/{part}", DIGEST) for part in parts),
            ("debris", "trash", _TRASHED),
        ]
        for kind, folder, form in places:
            for entry in _entries(root / folder):
                if re.fullmatch(form, entry.name):
                    with suppress(FileNotFoundError):  # deleted by another process since
                        modified = entry.stat(follow_symlinks=False).st_mtime
                        digest = entry.name.rpartition("-")[2]
                        yield Kept(kind, digest, f"{folder}/{entry.name}", _bytes(entry), modified)

    def delete(self, kept: Kept) -> None:
        """Delete what a digest names, or a part of the trash."""
        delete(self._layout, self._layout.root / kept.name)


def size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(map(_bytes, _entries(path)))


def _bytes(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return sum(map(_bytes, _entries(entry.path)))
    return entry.stat(follow_symlinks=False).st_size


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it was deleted since, or is not one."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def delete(layout: Layout, path: Path) -> None:
    """Delete a path of the bank.

    A folder under a digest goes by way of ``trash``: a killed deletion must not leave half of it under its name.
    Folders are opened without following links and names are taken relative to the open folder, so a folder that
    somebody turns into a link meanwhile leads nowhere.
    """
    with _opened(path.parent) as parent:
        if not stat.S_ISDIR(os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(path.name, dir_fd=parent)
        elif not re.fullmatch(DIGEST, path.name):
            shutil.rmtree(path.name, dir_fd=parent)
        else:
            doomed = f"{os.urandom(8).hex()}-{path.name}"
            with _opened(layout.trash) as trash:
                os.rename(path.name, doomed, src_dir_fd=parent, dst_dir_fd=trash)
                os.fsync(parent)
                shutil.rmtree(doomed, dir_fd=trash)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
