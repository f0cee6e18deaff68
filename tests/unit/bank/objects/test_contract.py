"""Where a bank's content lies: the public contract over the folder and over a dictionary, and a bank over each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.objects.folder import FolderObjects
from lorabank.bank.objects.layout import Layout
from lorabank.core.errors import DamagedError, IncompatibleError, NotFoundError
from lorabank.testing import Cut, ObjectsContract
from tests.unit.bank.objects.memory import MemoryObjects, Store


class TestFolder(ObjectsContract):
    calls = ("write", "fchmod", "fsync", "rename", "mkdir", "rmdir", "unlink", "utime")

    def make(self, folder: Path) -> FolderObjects:
        folder.mkdir(parents=True, exist_ok=True)
        Layout(folder).make_folders()
        return FolderObjects(Layout(folder))

    def spoil(self, folder: Path, digest: str) -> None:
        path = Layout(folder).adapter(digest) / "adapter_model.safetensors"
        path = path if path.exists() else Layout(folder).blob(digest)
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"!")


class TestMemory(ObjectsContract):
    @pytest.fixture(autouse=True)
    def stores(self) -> None:
        self.kept: dict[Path, Store] = {}
        self.left = 0

    def make(self, folder: Path) -> MemoryObjects:
        store = self.kept.setdefault(folder, Store())
        store.before = self.count
        return MemoryObjects(store, folder)

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Cut

    @contextmanager
    def cut_off(self, step: int) -> Iterator[None]:
        self.left = step
        yield
        self.left = 0

    def spoil(self, folder: Path, digest: str) -> None:
        for (_, key), (files, _) in self.kept[folder].kept.items():
            if key == digest:
                name = max(files)
                files[name] = files[name][:-1] + b"!"


# ------------------------------------------------------------------------------------------- a bank over each of them


@pytest.fixture(params=["folder", "memory"])
def placed(request: pytest.FixtureRequest, bank: Bank, tmp_path: Path) -> Bank:
    """A bank whose rows lie in its folder, and whose content lies there or in a dictionary."""
    if request.param == "folder":
        return bank
    return Bank(Layout(bank.path), bank.id, MemoryObjects(Store(), tmp_path))


def clear(bank: Bank) -> None:
    for kept in list(bank.objects.list()):
        bank.objects.delete(kept)


def test_a_bank_lives_on_any_objects(placed: Bank, kit: Any) -> None:
    kit.add_task(placed, "a", weight=1.0)
    kit.add_task(placed, "b", weight=2.0, context=(placed.snapshot().adapter_of("a").digest,))
    kit.compose(placed, "both", ("a", "b"), content=kit.safetensors(0.5))
    adapter = placed.snapshot().adapter_of("b")
    assert placed.adapter_files(adapter.digest) == kit.files(2.0, -2.0)
    assert placed.read_blob(adapter.objects["inputs"]) == kit.safetensors(2.0, 0.75, name="inputs")
    assert placed.verify(full=True) == []
    assert placed.gc(dry_run=False, grace_hours=-1).paths == ()
    placed.remove("both")
    (gone,) = placed.gc(dry_run=False, grace_hours=-1).paths
    assert gone.endswith(placed.snapshot().removed_compositions[0].objects["selector"])
    with pytest.raises(NotFoundError, match="files are gone"):
        placed.undo()
    assert placed.verify(full=True) == []


def test_a_bank_misses_what_its_objects_lost(placed: Bank, kit: Any) -> None:
    kit.add_task(placed, "a")
    snapshot = placed.snapshot()
    clear(placed)
    assert {finding.kind for finding in placed.verify(full=False)} == {"adapter", "blob"}
    with pytest.raises(DamagedError):
        placed.verified_adapter(snapshot.adapter_of("a").digest)
    with pytest.raises(DamagedError):
        placed.read_blob(str(snapshot.task("a").statistics))
    with pytest.raises(IncompatibleError, match="not in the bank any more"):
        kit.add_task(placed, "b", weight=3.0, context=(snapshot.adapter_of("a").digest,))
    assert [task.name for task in placed.snapshot().tasks] == ["a"]


def test_what_a_change_staged_goes_with_it(placed: Bank, kit: Any) -> None:
    with placed.reserve("compose", "mix", {}) as operation:
        operation.stage_blob(b"rows")
        operation.stage_adapter(kit.files(1.0))
    assert list(placed.objects.list()) == []
    assert placed.operations() == []
