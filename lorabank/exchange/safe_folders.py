"""Folders outside the bank: those of others are read with suspicion, our own are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NoReturn

from lorabank.bank.failures import reported
from lorabank.bank.objects.sync import sync_folder
from lorabank.core.commands import file_word, shell_line
from lorabank.core.errors import ConfigError, DataError, ExistsError, NotFoundError

_UNWRITTEN = "nothing was written"


def check_target(target: Path, bank: Path) -> None:
    """Refuse a folder to be written that has files, is a link, has no parent, or lies inside the bank.

    Raises:
        ExistsError: Something is there.
        NotFoundError: There is no parent folder.
        ConfigError: It lies in the bank.
    """
    with reported(target, unchanged=_UNWRITTEN):
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            what = "a link" if target.is_symlink() else "a folder with files" if target.is_dir() else "a file"
            raise ExistsError(f"{target} is {what}", hint="name a folder that does not exist", unchanged=_UNWRITTEN)
        _check_around(target, bank, "folder")


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder, as `new_folder` does.

    Args:
        target: An absolute path that does not exist or is an empty folder.
        files: File name to content.

    Raises:
        StorageError: No space, no permission, or an input/output error.
    """
    with new_folder(target) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)


@contextmanager
def in_folder(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder with files of these names, for readers of folders; it is gone when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        yield Path(folder)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that appears whole when the block ends: it is written beside its place, synced, then renamed.

    Args:
        target: An absolute path that does not exist or is an empty folder.

    Raises:
        StorageError: No space, no permission, or an input/output error.
    """
    with reported(target, unchanged=_UNWRITTEN):
        temporary = target.with_name(f".{target.name[:200]}.{os.urandom(6).hex()}")
        temporary.mkdir()
        try:
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
                else:
                    sync_folder(path)
            sync_folder(temporary)
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(target.parent)


@contextmanager
def new_parents(target: Path) -> Iterator[None]:
    """The folders above a path, made where they are missing; if the block fails, those that were made go again."""
    missing = list(takewhile(lambda folder: not folder.exists(), target.parents))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # somebody put something into one of them
            for folder in missing:
                folder.rmdir()
        raise


def check_new_file(target: Path, bank: Path, *, overwrite: bool, read: str | None) -> None:
    """A file to be written must not be there, or be a regular one that may be replaced; it lies outside the bank.

    Args:
        target: The file.
        bank: The bank's folder.
        overwrite: Whether a file that is there is replaced.
        read: A file that is read for it, which it must not be.

    Raises:
        ExistsError: Something is there.
        NotFoundError: There is no parent folder.
        ConfigError: It lies in the bank, or is the file that is read.
    """
    with reported(target, unchanged=_UNWRITTEN):
        if target.is_symlink() or (target.exists() and not target.is_file()):
            what = "a link" if target.is_symlink() else "a folder" if target.is_dir() else "no regular file"
            raise ExistsError(f"{target} is {what}", hint="name a file that does not exist", unchanged=_UNWRITTEN)
        if read is not None and target.exists() and os.path.exists(read) and target.samefile(read):
            raise ConfigError(
                f"{target} is the file that is read, and it would be overwritten",
                hint="name another file",
                unchanged=_UNWRITTEN,
            )
        if target.exists() and not overwrite:
            raise ExistsError(f"{target} already exists", hint="--overwrite replaces it", unchanged=_UNWRITTEN)
        _check_around(target, bank, "file")


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A file that appears whole when the block ends: it is written beside its place, synced, then renamed.

    Raises:
        StorageError: No space, no permission, or an input/output error.
    """
    with reported(target, unchanged=_UNWRITTEN):
        temporary = target.with_name(f".{target.name[:200]}.{os.urandom(6).hex()}")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.absolute().parent)


def read_regular(
    path: Path, limit: int, *, unchanged: str, judge: Callable[[BinaryIO, str], object] | None = None
) -> bytes | None:
    """The content of a file that a stranger made; None where there is none.

    A pipe does not block and a link is not followed. What is judged and stored afterwards is what was read here, never
    the file again.

    Args:
        path: The file.
        limit: The maximum number of bytes that are read.
        unchanged: What stays as it is when the file is refused.
        judge: Looks at the open file before it is read into memory, and gets its name; a sparse file costs nothing on
            the disk.

    Raises:
        DataError: ``judge`` refuses it, or it is a link, no regular file, larger than ``limit``, cannot be read, or
            changes meanwhile.
    """

    def refuse(reason: str, hint: str | None = None) -> NoReturn:
        raise DataError(f"{path} {reason}", hint=hint, unchanged=unchanged)

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_symlink():
            refuse("is a link, which is not followed", "copy its target: cp -rL")
        refuse(f"cannot be read: {error.strerror}")
    try:
        with reported(path, unchanged=unchanged):
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                refuse("is not a regular file")
            if status.st_size > limit:
                refuse(f"is larger than {limit} bytes")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                if judge is not None:
                    judge(file, path.name)
                    file.seek(0)
                data = file.read(status.st_size + 1)
            after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if len(data) != status.st_size or after.st_mtime_ns != status.st_mtime_ns:
        refuse("was changed while it was read", "copy it when nothing writes to it any more")
    return data


def _check_around(target: Path, bank: Path, what: str) -> None:
    parent = target.parent
    if not parent.is_dir():
        raise NotFoundError(
            f"there is no folder {parent}", hint=shell_line("mkdir", "-p", file_word(parent)), unchanged=_UNWRITTEN
        )
    if target.resolve().is_relative_to(bank.resolve()):
        raise ConfigError(f"{target} is inside the bank", hint=f"name a {what} elsewhere", unchanged=_UNWRITTEN)
