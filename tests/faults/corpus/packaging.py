"""D: what lies where a file should be."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.corpus.case import CONFIG, WEIGHTS, Case, Spoil, fields


def link(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder / "real")
        (folder / name).symlink_to("real")

    return spoil


def linked_folder(folder: Path) -> Path:
    other = folder.with_name("link")
    other.symlink_to(folder)
    return other


def pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def device(folder: Path) -> None:
    """A device where one may be made, a socket elsewhere."""
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, 0o666 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{short}/s")
            os.rename(f"{short}/s", folder / WEIGHTS)


def directory(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def hard_link(folder: Path) -> None:
    os.link(folder / WEIGHTS, folder / "second name")


def only_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    both(folder)


def both(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")


def case_twin(folder: Path) -> None:
    (folder / WEIGHTS.title()).write_bytes(b"another")
    (folder / CONFIG.upper()).write_text("{}")


def unreadable(folder: Path) -> None:
    (folder / WEIGHTS).chmod(0)


def sparse(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 10**12)


@contextmanager
def growing(folder: Path) -> Iterator[None]:
    """A byte is appended between the look at the file and the reading."""
    real = os.fdopen
    with (folder / WEIGHTS).open("ab", buffering=0) as writer:

        def fdopen(*args: Any, **kwargs: Any) -> Any:
            writer.write(b"x")
            return real(*args, **kwargs)

        with mock.patch("lorabank.exchange.safe_folders.os.fdopen", fdopen):
            yield


def nothing(folder: Path) -> None: ...


def around(folder: Path) -> Path:
    return folder / ".." / folder.name / ".." / folder.name


CASES = (
    Case("D01 weights a link", 6, link(WEIGHTS)),
    Case("D02 folder a link", 0, linked_folder),
    Case("D03 config a link", 6, link(CONFIG)),
    Case("D04 pipe", 6, pipe),
    Case("D05 device", 6, device),
    Case("D06 directory", 6, directory),
    Case("D07 hard link", 0, hard_link),
    Case("D08 module names that climb", 6, fields(modules_to_save=["../../classifier"])),
    Case("D09 twins in capitals", 0, case_twin),
    Case("D10 pickle only", 6, only_pickle),
    Case("D11 pickle beside it", 0, both),
    Case("D12 unreadable", 0 if os.geteuid() == 0 else 6, unreadable),  # root reads everything
    Case("D13 changes while it is read", 6, nothing, during=growing),
    Case("D14 1 TB with holes", 6, sparse),
    Case("D15 path that climbs and comes back", 0, around),
)
