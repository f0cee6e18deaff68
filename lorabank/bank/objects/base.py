"""The port to where a bank's content lies: immutable blobs and adapters, each under its digest.

The bank knows no more of it than this: a folder is the first implementation (`lorabank.bank.objects.folder`), and
`lorabank.testing.ObjectsContract` says what every other one must keep. Rows, names and states are the catalog's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from lorabank.bank.objects.canonical import canonical


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's name, SHA-256 and size in bytes."""

    name: str
    sha256: str
    bytes: int


def adapter_digest(files: Sequence[StoredFile]) -> str:
    """The digest of an adapter: SHA-256 over its files' names, hashes and sizes, by name."""
    content = [[file.name, file.sha256, file.bytes] for file in sorted(files, key=lambda file: file.name)]
    return hashlib.sha256(canonical(content).encode()).hexdigest()


class Kept(NamedTuple):
    """One object that is stored.

    Attributes:
        kind: What it is; ``"debris"`` is the rest of a deletion that was cut off.
        digest: Its digest.
        name: What people are shown; a name of debris is its own.
        bytes: Its size, all files together.
        modified: When it was placed last, in seconds since the epoch.
    """

    kind: Literal["adapter", "blob", "debris"]
    digest: str
    name: str
    bytes: int
    modified: float


class Staging(Protocol):
    """The content of one change on its way in: checked when it is added, unseen until it is placed.

    Attributes:
        blobs: What was added, by digest.
        adapters: The files of each adapter that was added, by its digest.
    """

    blobs: dict[str, StoredFile]
    adapters: dict[str, list[StoredFile]]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added yet."""

    def add_blob(self, data: bytes) -> str:
        """Take a blob, and return its SHA-256.

        Raises:
            DataError: It is a safetensors file with a wrong header or with values that are not finite.
            StorageError: There is no room, or other bytes came back than were written.
        """

    def add_adapter(self, files: Mapping[str, bytes]) -> str:
        """Take the files of an adapter, and return its digest.

        Raises:
            ConfigError: A file's name cannot be used.
            DataError: A safetensors or JSON file is not what it should be.
            StorageError: As for a blob.
        """

    def place(self) -> None:
        """Make everything last under its digest; each object is there whole or not at all.

        What is there already and sound is kept and counts as modified now, what is damaged is replaced.
        """

    def discard(self) -> None:
        """Drop what was not placed."""


class Objects(Protocol):
    """Where the blobs and adapters of one bank lie."""

    def stage(self, change: str) -> Staging:
        """A place for the content of a change; ``change`` is the id of an operation, 32 hexadecimal digits."""

    def holds(self, kind: Literal["adapter", "blob"], digest: str) -> bool:
        """Whether there is such an object, sound or not.

        Raises:
            DamagedError: The digest is none.
        """

    def local(self, digest: str) -> Path:
        """The folder on this machine from which an adapter is loaded; nothing is checked.

        Raises:
            DamagedError: The digest is none.
        """

    def get(self, digest: str) -> bytes:
        """The content of a blob, after its SHA-256 was compared.

        Raises:
            DamagedError: It is missing or changed, or the digest is none.
        """

    def adapter_problems(
        self, digest: str, files: Sequence[StoredFile], *, full: bool = True, strict: bool = False
    ) -> list[str]:
        """What is wrong with an adapter: nothing, or one line each.

        Args:
            digest: Its digest.
            files: Its files as recorded.
            full: Read and hash them; otherwise existence and size only.
            strict: Look also for files that do not belong to it and, with ``full``, for values that are not finite.
        """

    def blob_problems(self, file: StoredFile, *, full: bool = True, strict: bool = False) -> list[str]:
        """What is wrong with a blob; otherwise as `adapter_problems`."""

    def list(self) -> Iterator[Kept]:
        """Everything that is stored, in any order, without what changes have on their way in."""

    def delete(self, kept: Kept) -> None:
        """Delete an object; cut off, it leaves the object whole, or debris."""
