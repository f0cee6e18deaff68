"""``bank.json``: what makes a folder a bank, and by which version it was made."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

from lorabank.bank.objects.layout import FORMAT, Layout
from lorabank.bank.objects.open_regular import open_plain
from lorabank.bank.objects.sync import sync_folder
from lorabank.core.commands import ADD_TASK, REPAIR, Command, file_word
from lorabank.core.errors import DamagedError, IncompatibleError, NotFoundError, StorageError
from lorabank.core.limits import MAX_CONFIG
from lorabank.core.machine.packages import UPDATE

_SHOWN = 3
_LOOKED_AT = 200  # entries of one folder


def read_manifest(layout: Layout) -> dict[str, Any]:
    """The content of ``bank.json``.

    Raises:
        NotFoundError: There is no bank.
        DamagedError: The file is missing beside a database, it is a link or no file, or it does not parse.
        StorageError: It cannot be read.
        IncompatibleError: A newer lorabank wrote it.
    """
    try:
        with open_plain(layout.manifest) as file:
            text = file.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG:
            raise ValueError(f"over {MAX_CONFIG} bytes")
        content = json.loads(text)
        if not isinstance(content["id"], str) or type(content["format"]) is not int:
            raise TypeError("id or format")
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(layout) from None
    except OSError as error:
        raise StorageError(
            f"{layout.manifest}: {error.strerror}", commands=[Command("doctor")], unchanged="the bank was not changed"
        ) from error
    except UnicodeEncodeError:  # of the path, which the locale's encoding cannot write
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"{layout.manifest}: not the manifest of a bank ({error})"
        raise DamagedError(message, commands=[REPAIR]) from error
    if content["format"] > FORMAT:
        raise IncompatibleError(
            f"bank {layout.root} has format {content['format']}, this lorabank knows {FORMAT}: "
            f"it was made by lorabank {content.get('created_with', '?')!s}",
            hint=UPDATE,
            unchanged="the bank was not changed",
        )
    return dict(content)


def write_manifest(layout: Layout, content: bytes) -> None:
    """Write ``bank.json`` under a fresh name, synced, then renamed: it is there whole or not at all."""
    from lorabank.bank.objects.store import write_new  # reading a bank does not pay for writing one

    folder = layout.staging(os.urandom(16).hex())
    folder.mkdir(mode=0o700)
    draft = folder / layout.manifest.name
    write_new(draft, content)
    os.rename(draft, layout.manifest)
    folder.rmdir()
    sync_folder(layout.root)
    sync_folder(layout.root.resolve().parent)


def _missing(layout: Layout) -> NotFoundError | DamagedError:
    if layout.database.exists():
        message = f"bank {layout.root}: bank.json is missing: the bank was never finished, or lost the file"
        return DamagedError(message, commands=[REPAIR])
    near = _nearby(layout.root)
    known = "one of the banks nearby" if near else "an existing one"
    return NotFoundError(
        f"no bank at {layout.root}",
        hint=f"name {known} with --bank; the first task makes one",
        commands=[*(Command("-b", file_word(bank), "list") for bank in near[:_SHOWN]), ADD_TASK],
        unchanged="nothing was changed",
    )


def _nearby(root: Path) -> list[Path]:
    """Banks at most two folders below ``root``, or below the folder that would hold it."""
    inner = _folders(root if root.is_dir() else root.parent)
    below = [deeper for folder in inner if not _is_bank(folder) for deeper in _folders(folder)]
    return [folder for folder in (*inner, *below) if _is_bank(folder)]


def _is_bank(folder: Path) -> bool:
    return os.path.isfile(Layout(folder).manifest)  # False too where the folder may not be read


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder by name, without hidden ones and links; of a very full folder only some."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in islice(entries, _LOOKED_AT) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # the search only helps, so it does not replace the error
        return []
    return [folder / name for name in sorted(found) if not name.startswith(".")]
