"""Where things lie in a bank folder, and which names may be used.

Paths are made from digests and operation ids alone: both are checked to be hex, so no name that a user, a file or
a database row holds ever becomes a path.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lorabank.bank.objects.sync import sync_folder
from lorabank.core.errors import ConfigError, DamagedError
from lorabank.core.limits import MAX_NAME

FORMAT = 1
"""Version of the folder's layout, in ``bank.json``."""

FOLDERS = ("adapters", "blobs", "staging", "work", "backups", "trash")
DATABASE_FILES = ("bank.db", "bank.db-wal", "bank.db-shm", "bank.db-journal")
QUARANTINE = "quarantine"
ENTRIES = frozenset((*FOLDERS, QUARANTINE, *DATABASE_FILES, "bank.json", "lock"))

# Texts, not compiled: the first use compiles and keeps them, and `lorabank list` uses none.
DIGEST = r"[0-9a-f]{64}"
OPERATION_ID = r"[0-9a-f]{32}"
_SLUG = rf"[a-z0-9](?:[a-z0-9._-]{{0,{MAX_NAME - 2}}}[a-z0-9])?"
_FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_DEVICES = frozenset(("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))))
_RESERVED = frozenset(("all", "as-trained", "auto", "base", "default", "none", "task"))


class Layout:
    """The paths inside the bank folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def manifest(self) -> Path:
        """``bank.json``: written last when a bank is made, so its presence means the bank is whole."""
        return self.root / "bank.json"

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.root / "bank.db"

    @property
    def lock(self) -> Path:
        """The file that ``flock`` is taken on."""
        return self.root / "lock"

    @property
    def backups(self) -> Path:
        """Copies of the database made before each upgrade."""
        return self.root / "backups"

    @property
    def trash(self) -> Path:
        """Files on their way out, and damaged files that were replaced."""
        return self.root / "trash"

    def adapter(self, digest: str) -> Path:
        """The PEFT folder of an adapter."""
        return self.root / "adapters" / _checked(digest, DIGEST)

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        return self.root / "blobs" / _checked(digest, DIGEST)[:2] / digest

    def staging(self, operation: str) -> Path:
        """Where an operation writes files before they are moved into place."""
        return self.root / "staging" / _checked(operation, OPERATION_ID)

    def work(self, operation: str) -> Path:
        """Where an operation keeps its checkpoints."""
        return self.root / "work" / _checked(operation, OPERATION_ID)

    def make_folders(self) -> None:
        """Make the folders of the bank that are missing (copying tools drop empty ones), private to the user.

        Raises:
            DamagedError: One of them is a link: what is written or deleted would lie outside the bank.
        """
        folders = [self._checked(name) for name in FOLDERS]
        missing = [folder for folder in folders if not folder.exists()]
        for folder in missing:
            folder.mkdir(mode=0o700, exist_ok=True)
        if missing:
            sync_folder(self.root)

    def quarantine(self) -> Path:
        """Where damaged files go: no command deletes them. The folder is made when it is first needed."""
        folder = self._checked(QUARANTINE)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _checked(self, name: str) -> Path:
        folder = self.root / name
        if folder.is_symlink():
            raise DamagedError(
                f"{folder} is a link",
                hint="put the folder itself in the place of the link",
                unchanged="the bank was not changed",
            )
        return folder


def check_name(name: str) -> str:
    """A task's or composition's name, when it may be used.

    Raises:
        ConfigError: The name is not a slug, or it is a reserved word.
    """
    lower = name.lower()
    if not re.fullmatch(_SLUG, name) or ".." in name:
        slug = re.sub(r"[^a-z0-9]+", "-", lower).strip("-")[:MAX_NAME].strip("-")
        raise ConfigError(
            f"{name[:80]!r} cannot be a name: use a-z, 0-9, '.', '_' and '-', at most {MAX_NAME}, "
            "with a letter or digit at both ends",
            hint=f"for example {slug!r}" if slug and re.fullmatch(_SLUG, slug) else None,
            unchanged="the bank was not changed",
        )
    if lower in _RESERVED or lower.split(".")[0] in _DEVICES:
        raise ConfigError(
            f"{name!r} cannot be a name: the word is reserved",
            hint=f"for example '{name.split('.')[0]}-1'",
            unchanged="the bank was not changed",
        )
    return name


def check_file_name(name: str) -> str:
    """The name of a file of an adapter folder, when it may be used.

    Raises:
        ConfigError: The name could leave the folder or be hidden.
    """
    if not re.fullmatch(_FILE_NAME, name) or os.sep in name:
        raise ConfigError(f"{name[:80]!r} cannot be the name of an adapter file", unchanged="the bank was not changed")
    return name


def _checked(value: str, pattern: str) -> str:
    if not re.fullmatch(pattern, value):
        raise DamagedError(f"{value[:80]!r} is not a digest of this bank")
    return value
