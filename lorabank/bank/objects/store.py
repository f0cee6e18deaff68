"""Files of a bank: written so that they are there whole or not at all, and never changed afterwards.

The order is the write protocol's (docs/bank.md): write into ``staging/`` under exclusive creation, hash while
writing, sync, re-open and check, sync the folder, rename into place, sync the parent. The row follows last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorabank.bank.objects.base import StoredFile, adapter_digest
from lorabank.bank.objects.layout import Layout, check_file_name
from lorabank.bank.objects.open_regular import open_plain
from lorabank.bank.objects.safetensors import check_tensors, looks_like_safetensors
from lorabank.bank.objects.sync import sync_folder
from lorabank.core.commands import Command
from lorabank.core.errors import DataError, StorageError
from lorabank.core.limits import FREE_SPACE, MAX_CONFIG

_CHUNK = 1 << 20
_OF_THE_PROCESS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a regular file; links are not followed.

    Raises:
        OSError: It cannot be opened.
        DamagedError: It is a link, or no regular file.
    """
    with open_plain(path) as file:
        digest, size = hashlib.sha256(), 0
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def write_new(path: Path, data: bytes) -> StoredFile:
    """Write a file that must not exist yet, make it read-only, sync it and read it back.

    Raises:
        StorageError: What is on the disk is not what was written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    digest, left = hashlib.sha256(), memoryview(data)
    try:
        while left:
            written = os.write(descriptor, left[:_CHUNK])
            digest.update(left[:written])
            left = left[written:]
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if hash_file(path) != (digest.hexdigest(), len(data)):
        raise StorageError(
            f"{path}: the bytes read back from the disk differ from those written",
            hint="check the disk, and keep the bank on another one until then",
            unchanged="the bank was not changed",
        )
    return StoredFile(path.name, digest.hexdigest(), len(data))


def check_space(folder: Path, need: int) -> None:
    """Refuse before writing what might not fit.

    Raises:
        StorageError: The disk has less than twice ``need`` bytes and a reserve free.
    """
    free = shutil.disk_usage(folder).free
    if free < 2 * need + FREE_SPACE:
        raise StorageError(
            f"{folder}: {free // 1024**2} MiB free, {(2 * need + FREE_SPACE) // 1024**2} MiB needed",
            hint="free some space",
            commands=[Command("gc")],
            unchanged="the bank was not changed",
        )


class Stage:
    """Files of one operation on their way into the bank.

    Args:
        layout: Where the bank is.
        operation: The operation's id.
    """

    def __init__(self, layout: Layout, operation: str) -> None:
        self._layout = layout
        self._folder = layout.staging(operation)
        self._paths: dict[str, Path] = {}
        self.blobs: dict[str, StoredFile] = {}
        self.adapters: dict[str, list[StoredFile]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was staged yet."""
        return not self._paths

    def add_blob(self, data: bytes) -> str:
        """Write a blob and check it.

        Returns:
            Its SHA-256.

        Raises:
            DataError: It is a safetensors file with a wrong header or with values that are not finite.
        """
        path = self._next_path(len(data))
        file = write_new(path, data)
        if looks_like_safetensors(data):
            check_tensors(path)
        self.blobs[file.sha256], self._paths[file.sha256] = file, path
        return file.sha256

    def add_adapter(self, files: Mapping[str, bytes]) -> str:
        """Write the files of an adapter folder and check them.

        Returns:
            The adapter's digest.

        Raises:
            ConfigError: A file's name cannot be used.
            DataError: A safetensors or JSON file is not what it should be.
        """
        for name in files:
            check_file_name(name)
        folder = self._next_path(sum(map(len, files.values())))
        folder.mkdir(mode=0o700)
        stored = [write_new(folder / name, data) for name, data in sorted(files.items())]
        for name in files:
            _check_content(folder / name)
        sync_folder(folder)
        digest = adapter_digest(stored)
        self.adapters[digest], self._paths[digest] = stored, folder
        return digest

    def place(self) -> None:
        """Move everything into place; what is there already and sound is kept and its time renewed."""
        targets = {digest: self._layout.blob(digest) for digest in self.blobs}
        for target in targets.values():
            target.parent.mkdir(mode=0o700, exist_ok=True)
        if targets:  # also when all were there: who made them may have been killed before this
            sync_folder(self._layout.root / "blobs")
        for digest, file in self.blobs.items():
            self._move(self._paths[digest], targets[digest], blob_problems(targets[digest], file))
        for digest, files in self.adapters.items():
            target = self._layout.adapter(digest)
            self._move(self._paths[digest], target, adapter_problems(target, files))

    def _move(self, staged: Path, target: Path, problems: list[str]) -> None:
        if not problems:
            os.utime(target)  # gc counts its grace from here: the file has a new owner
        else:
            if os.path.lexists(target):
                os.rename(target, self._layout.trash / f"{os.urandom(8).hex()}-{target.name}")
            os.rename(staged, target)
        # Also what was there: a process that was killed after its rename has not made it durable.
        sync_folder(target.parent)

    def _next_path(self, need: int) -> Path:
        check_space(self._layout.root, need)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder / f"{len(self._paths):04d}-{os.urandom(4).hex()}"

    def discard(self) -> None:
        """Delete what was staged and not placed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def blob_problems(path: Path, expected: StoredFile, *, full: bool = True) -> list[str]:
    """What is wrong with a stored file: nothing, or one line each.

    Args:
        path: The file.
        expected: Its recorded hash and size.
        full: Read and hash it; otherwise existence, kind and size only.

    Raises:
        OSError: This process may open no more files, or has no memory: that says nothing about the file.
    """
    try:
        status = path.lstat()
        if not path.is_file() or path.is_symlink():
            return [f"{path.name} is not a regular file"]
        if status.st_size != expected.bytes:
            return [f"{path.name} has {status.st_size} bytes, recorded are {expected.bytes}"]
        if full and hash_file(path)[0] != expected.sha256:
            return [f"{path.name} has different content from what was stored (SHA-256 differs)"]
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except OSError as error:
        if error.errno in _OF_THE_PROCESS:
            raise
        return [f"{path.name} cannot be read: {error.strerror}"]
    return []


def is_damaged(path: Path, expected: StoredFile) -> bool:
    """Whether two attempts find it damaged: an error in passing, of a cable or a controller, condemns no file."""
    return bool(blob_problems(path, expected) and blob_problems(path, expected))


def adapter_problems(folder: Path, files: Sequence[StoredFile], *, full: bool = True) -> list[str]:
    """What is wrong with an adapter folder: nothing, or one line each."""
    if not folder.is_dir() or folder.is_symlink():
        return ["the adapter's folder is missing"]
    return [problem for file in files for problem in blob_problems(folder / file.name, file, full=full)]


def strangers(folder: Path, files: Sequence[StoredFile]) -> list[str]:
    """Names in an adapter folder that are not the adapter's; loading does not look at them."""
    known = {file.name for file in files}
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known)


def content_problems(path: Path) -> list[str]:
    """What is wrong inside a file whose bytes are the stored ones."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            check_tensors(path)
    except DataError as error:
        return [error.message]
    except OSError as error:
        return [f"{path.name} cannot be read: {error.strerror}"]
    return []


def _check_content(path: Path) -> None:
    if path.suffix == ".safetensors":
        check_tensors(path)
    elif path.suffix == ".json":
        if path.stat().st_size > MAX_CONFIG:
            raise DataError(f"{path.name}: over {MAX_CONFIG} bytes", unchanged="the bank was not changed")
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path.name}: not valid JSON ({error})", unchanged="the bank was not changed") from error
