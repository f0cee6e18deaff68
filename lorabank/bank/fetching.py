"""Bringing files into a bank by their digest, from wherever good copies lie: another bank, an exported folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lorabank.bank.layout import Layout
from lorabank.bank.store import Stage, StoredFile, blob_problems
from lorabank.core.errors import DataError


def fetch_adapter(layout: Layout, digest: str, files: Sequence[StoredFile], folders: Iterable[Path]) -> list[str]:
    """Put an adapter into its place.

    Args:
        layout: The bank that gets it.
        digest: The adapter's digest.
        files: Its files as recorded.
        folders: Where to look; a file is taken from the first folder that holds it with the recorded bytes.

    Returns:
        Names of files that lie in none of the folders whole; nothing was written then.
    """
    looked = list(folders)
    found = {file.name: _read(file, [folder / file.name for folder in looked]) for file in files}
    missing = [name for name, data in found.items() if data is None]
    if not missing:
        _store(layout, digest, {name: data for name, data in found.items() if data is not None})
    return missing


def fetch_blob(layout: Layout, digest: str, file: StoredFile, banks: Iterable[Path]) -> bool:
    """Put a blob into its place, from the first of the bank folders that holds it whole; whether there was one."""
    data = _read(file, [Layout(bank).blob(digest) for bank in banks])
    if data is not None:
        _store(layout, digest, data)
    return data is not None


def _read(file: StoredFile, paths: Iterable[Path]) -> bytes | None:
    for path in paths:
        if not blob_problems(path, file):
            return path.read_bytes()
    return None


def _store(layout: Layout, digest: str, content: bytes | dict[str, bytes]) -> None:
    """The write protocol's steps 4 and 5; what was read is hashed again while it is written."""
    stage = Stage(layout, os.urandom(16).hex())
    try:
        stored = stage.add_adapter(content) if isinstance(content, dict) else stage.add_blob(content)
        if stored != digest:
            raise DataError(f"{digest[:12]}: the copy changed while it was read", unchanged="the bank was not changed")
        stage.place()
    finally:
        stage.discard()
