"""Objects that lie in no folder: a second implementation, so that the contract judges the port and not the folder."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lorabank.bank.objects.base import Kept, StoredFile, adapter_digest
from lorabank.bank.objects.safetensors import check_tensor_bytes, looks_like_safetensors
from lorabank.core.errors import ConfigError, DamagedError, DataError

Kind = Literal["adapter", "blob"]


class Store:
    """What is kept, by kind and digest: the files and the time.

    Attributes:
        before: Called before each change of what is kept.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[Kind, str], tuple[dict[str, bytes], float]] = {}

    def before(self) -> None:
        """Nothing, unless a test puts something here."""


class MemoryStaging:
    def __init__(self, objects: MemoryObjects) -> None:
        self._objects = objects
        self._content: dict[tuple[Kind, str], dict[str, bytes]] = {}
        self.blobs: dict[str, StoredFile] = {}
        self.adapters: dict[str, list[StoredFile]] = {}

    @property
    def is_empty(self) -> bool:
        return not self._content

    def add_blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if looks_like_safetensors(data):
            check_tensor_bytes(data, "blob")
        self.blobs[digest] = StoredFile(digest, digest, len(data))
        self._content["blob", digest] = {digest: data}
        return digest

    def add_adapter(self, files: Mapping[str, bytes]) -> str:
        for name, data in files.items():
            if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
                raise ConfigError(f"{name!r} cannot be the name of an adapter file")
            if name.endswith(".safetensors"):
                check_tensor_bytes(data, name)
            elif name.endswith(".json"):
                try:
                    json.loads(data)
                except ValueError as error:
                    raise DataError(f"{name}: {error}") from error
        stored = [StoredFile(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()]
        digest = adapter_digest(stored)
        self.adapters[digest] = stored
        self._content["adapter", digest] = dict(files)
        return digest

    def place(self) -> None:
        for key, files in self._content.items():
            self._objects.store.before()
            self._objects.store.kept[key] = (dict(files), time.time())

    def discard(self) -> None:
        self._content.clear()


class MemoryObjects:
    """Objects in a dictionary; an adapter is written to a folder when somebody loads it."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self._folder = folder

    def stage(self, change: str) -> MemoryStaging:
        assert re.fullmatch("[0-9a-f]{32}", change)
        return MemoryStaging(self)

    def holds(self, kind: Kind, digest: str) -> bool:
        return self._files(kind, digest) is not None

    def local(self, digest: str) -> Path:
        files = self._files("adapter", digest) or {}
        folder = self._folder / "loaded" / digest
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder

    def get(self, digest: str) -> bytes:
        files = self._files("blob", digest)
        if files is None or hashlib.sha256(files[digest]).hexdigest() != digest:
            raise DamagedError(f"blob {digest}: missing or changed")
        return files[digest]

    def adapter_problems(
        self, digest: str, files: Sequence[StoredFile], *, full: bool = True, strict: bool = False
    ) -> list[str]:
        there = self._files("adapter", digest)
        if there is None:
            return ["the adapter's folder is missing"]
        beyond = there.keys() - {file.name for file in files} if strict else set()
        return [*_problems(there, files, full), *(f"{name!r} does not belong to the adapter" for name in beyond)]

    def blob_problems(self, file: StoredFile, *, full: bool = True, strict: bool = False) -> list[str]:
        there = self._files("blob", file.sha256) or {}
        return _problems(there, [StoredFile(file.sha256, file.sha256, file.bytes)], full)

    def list(self) -> Iterator[Kept]:
        for (kind, digest), (files, modified) in [*self.store.kept.items()]:
            yield Kept(kind, digest, f"{kind}s/{digest}", sum(map(len, files.values())), modified)

    def delete(self, kept: Kept) -> None:
        self.store.before()
        del self.store.kept[kept.kind, kept.digest]  # type: ignore[index]

    def _files(self, kind: Kind, digest: str) -> dict[str, bytes] | None:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise DamagedError(f"{digest!r} is not a digest")
        return self.store.kept.get((kind, digest), (None, 0.0))[0]


def _problems(there: Mapping[str, bytes], files: Sequence[StoredFile], full: bool) -> list[str]:
    found = []
    for file in files:
        data: Any = there.get(file.name)
        if data is None or len(data) != file.bytes or (full and hashlib.sha256(data).hexdigest() != file.sha256):
            found.append(f"{file.name} is missing or changed")
    return found
