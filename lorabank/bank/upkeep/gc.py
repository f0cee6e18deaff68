"""Deleting the files that nothing refers to."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorabank.bank.catalog.database import busy
from lorabank.bank.catalog.events import EventRecord
from lorabank.bank.catalog.reading import read_operations, reading
from lorabank.bank.failures import reported
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.filesystem import network_filesystem
from lorabank.bank.objects.layout import DIGEST, OPERATION_ID, Layout
from lorabank.bank.operations import RESUMABLE, holds_checkpoint
from lorabank.bank.upkeep.referenced import LiveFiles, changed_rows, live_files
from lorabank.bank.upkeep.undo import lost_with
from lorabank.core.commands import VERIFY
from lorabank.core.errors import ConfigError, DamagedError
from lorabank.core.records import OperationRecord

_TRASHED = rf"[0-9a-f]{{16}}-(?:{DIGEST}|{OPERATION_ID})"


@dataclass(frozen=True, slots=True)
class GcResult:
    """What was deleted, or would be.

    Attributes:
        paths: Below the bank folder.
        bytes: In all.
        lost: Changes that ``undo`` could take back until then, newest first.
    """

    paths: tuple[str, ...]
    bytes: int
    lost: tuple[EventRecord, ...] = ()


def gc(layout: Layout, *, dry_run: bool, grace_hours: float) -> GcResult:
    """Delete what nothing refers to; see ``Bank.gc``."""
    if dry_run:
        return _result(layout, *_garbage(layout, grace_hours))
    if grace_hours <= 0 and (kind := network_filesystem(layout.root)) is not None:
        raise ConfigError(
            f"bank {layout.root} is on {kind}, a network file system, where a lock may not keep writers away",
            hint="leave --grace-hours out, or give a number above 0",
            unchanged="the bank was not changed",
        )
    # Every writer holds the lock shared from its first staged file to its commit, so nothing is on its way now.
    with bank_lock(layout.lock, exclusive=True), reported(layout.root):
        layout.make_folders()
        garbage, lost = _garbage(layout, grace_hours)
        result = _result(layout, garbage, lost)
        for path in garbage:
            delete(layout, path)
        return result


def _garbage(layout: Layout, grace_hours: float) -> tuple[list[Path], tuple[EventRecord, ...]]:
    """What goes, and the changes that cannot be taken back without it."""
    with reading(layout) as connection:
        operations = read_operations(connection, layout)
        for operation in operations:
            if operation.alive:
                raise busy(layout, operation)
        changed = changed_rows(connection)
        if changed:  # a row that cannot be trusted may hide what it refers to
            table, key = changed[0]
            raise DamagedError(
                f"bank {layout.root}: row {key!r} of {table} is damaged: nothing is deleted",
                commands=[VERIFY],
                unchanged="the bank was not changed",
            )
        newest = time.time() - grace_hours * 3600
        unused = _unreferenced(layout, live_files(connection))
        old = [path for path in unused if path.lstat().st_mtime <= newest]
        lost = lost_with(connection, {path.name for path in old})
    trash = (path for path in layout.trash.glob("*") if re.fullmatch(_TRASHED, path.name))
    return sorted([*old, *trash, *left_over(layout, operations)]), lost


def _unreferenced(layout: Layout, live: LiveFiles) -> Iterator[Path]:
    """Adapters and blobs, by names that are digests: anything else was not put there by lorabank."""
    for path in (layout.root / "adapters").glob("*"):
        if re.fullmatch(DIGEST, path.name) and path.name not in live.adapters:
            yield path
    for path in (layout.root / "blobs").glob("??/*"):
        if re.fullmatch(DIGEST, path.name) and path.name not in live.blobs:
            yield path


def left_over(layout: Layout, operations: list[OperationRecord]) -> Iterator[Path]:
    """What dead operations left; checkpoints that can be resumed stay."""
    kept = {
        operation.id
        for operation in operations
        if operation.kind == RESUMABLE and holds_checkpoint(layout.work(operation.id))
    }
    for path in (layout.root / "staging").glob("*"):
        if re.fullmatch(OPERATION_ID, path.name):
            yield path
    for path in (layout.root / "work").glob("*"):
        if re.fullmatch(OPERATION_ID, path.name) and path.name not in kept:
            yield path


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


def _result(layout: Layout, garbage: list[Path], lost: tuple[EventRecord, ...]) -> GcResult:
    return GcResult(tuple(str(path.relative_to(layout.root)) for path in garbage), sum(map(_size, garbage)), lost)


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_symlink() or file.is_file())
