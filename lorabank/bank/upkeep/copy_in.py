"""Bringing files into a bank by their digest, from wherever good copies lie: another bank, an exported folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lorabank.bank.objects.base import StoredFile
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.store import Stage, adapter_problems, blob_problems, is_damaged
from lorabank.bank.upkeep.referenced import LiveFiles
from lorabank.core.commands import VERIFY
from lorabank.core.errors import DataError


class Brought(NamedTuple):
    """What a bank got from another one.

    Attributes:
        copied: Adapters and blobs that were not there.
        mended: What was damaged and has its recorded bytes again, one line for each file.
        lost: What neither of the two holds whole, one line for each file.
    """

    copied: int
    mended: tuple[str, ...]
    lost: tuple[str, ...]


class _Wanted(NamedTuple):
    """An adapter or blob that a bank lacks, or holds damaged.

    Attributes:
        what: What it is, for a message.
        path: Where it belongs.
        problems: What is wrong there.
        sources: Each file as recorded, with the paths where it may be whole; the last is the other bank's.
        fetch: Puts it into its place; gives the names of files that are nowhere whole.
    """

    what: str
    path: Path
    problems: list[str]
    sources: list[tuple[StoredFile, list[Path]]]
    fetch: Callable[[], list[str]]


def bring(layout: Layout, live: LiveFiles, source: Path, *, dry_run: bool = False) -> Brought:
    """Give a bank every file that it needs: each is read and hashed, and what lacks or is damaged is copied.

    Args:
        layout: The bank that gets them.
        live: What it needs.
        source: The bank that has them.
        dry_run: Copy nothing, say what would be copied.
    """
    copied, mended, lost = 0, list[str](), list[str]()
    for wanted in _wanted(layout, live, Layout(source)):
        absent = not os.path.lexists(wanted.path)
        if dry_run:
            missing = [file.name for file, paths in wanted.sources if _whole(file, paths) is None]
        else:
            missing = wanted.fetch()
        if missing:
            for file, paths in wanted.sources:
                if file.name in missing:
                    problems = blob_problems(paths[-1], file) or [f"{file.name} could not be read"]  # a moment ago
                    lost.append(f"{wanted.what}: {problems[0]}")
        elif absent:
            copied += 1
        else:
            mended += [f"{wanted.what}: {problem}" for problem in wanted.problems]
    return Brought(copied, tuple(mended), tuple(lost))


def _wanted(layout: Layout, live: LiveFiles, origin: Layout) -> Iterator[_Wanted]:
    for digest, (task, files) in live.adapters.items():
        here, there = layout.adapter(digest), origin.adapter(digest)
        if problems := adapter_problems(here, files):
            yield _Wanted(
                f"adapter {digest[:12]} of task {task}",
                here,
                problems,
                [(file, [here / file.name, there / file.name]) for file in files],
                partial(fetch_adapter, layout, digest, files, [here, there]),
            )
    for digest, file in live.blobs.items():
        here, there = layout.blob(digest), origin.blob(digest)
        if problems := blob_problems(here, file):
            fetch = partial(fetch_blob, layout, digest, file, [origin.root])
            yield _Wanted(live.owners[digest], here, problems, [(file, [there])], fetch)


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


def fetch_blob(layout: Layout, digest: str, file: StoredFile, banks: Iterable[Path]) -> list[str]:
    """Put a blob into its place, from the first of the bank folders that holds it whole; its name if none does."""
    data = _read(file, [Layout(bank).blob(digest) for bank in banks])
    if data is None:
        return [file.name]
    _store(layout, digest, data)
    return []


def _read(file: StoredFile, paths: Iterable[Path]) -> bytes | None:
    path = _whole(file, paths)
    return None if path is None else path.read_bytes()


def _whole(file: StoredFile, paths: Iterable[Path]) -> Path | None:
    """The first of the paths where the file lies with the recorded bytes."""
    return next((path for path in paths if not is_damaged(path, file)), None)


def _store(layout: Layout, digest: str, content: bytes | dict[str, bytes]) -> None:
    """The write protocol's steps 4 and 5; what was read is hashed again while it is written."""
    stage = Stage(layout, os.urandom(16).hex())
    try:
        stored = stage.add_adapter(content) if isinstance(content, dict) else stage.add_blob(content)
        if stored != digest:
            kind = "adapter" if isinstance(content, dict) else "blob"
            message = f"{kind} {digest[:12]}: the copy changed while it was read"
            raise DataError(message, commands=[VERIFY], unchanged="the bank was not changed")
        stage.place()
    finally:
        stage.discard()
