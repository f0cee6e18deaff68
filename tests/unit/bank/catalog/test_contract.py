"""Where a bank's rows lie: the public contract over SQLite and over a dictionary, and a bank over each."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.base import Catalog
from lorabank.bank.catalog.sqlite import SqliteCatalog
from lorabank.bank.history import read_history
from lorabank.bank.objects.layout import Layout
from lorabank.core.errors import BusyError, DamagedError, ExistsError, NotFoundError
from lorabank.testing import CatalogContract, Cut
from lorabank.testing.cuts import counted
from tests.unit.bank.catalog.memory import Kept, MemoryCatalog
from tests.unit.bank.objects.memory import MemoryObjects, Store


class TestSqlite(CatalogContract):
    @pytest.fixture(autouse=True)
    def empty(self, empty_bank: Path) -> None:
        self.database = empty_bank / "bank.db"

    def make(self, folder: Path) -> SqliteCatalog:
        catalog = SqliteCatalog(Layout(folder))
        if not (folder / "bank.db").exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.database, folder)
            with catalog.write() as transaction:
                for table in ("bank", "base_model", "events"):
                    transaction.delete(table, {})
        return catalog


class TestMemory(CatalogContract):
    @pytest.fixture(autouse=True)
    def places(self) -> None:
        self.kept: dict[Path, Kept] = {}

    def make(self, folder: Path) -> MemoryCatalog:
        return MemoryCatalog(self.kept.setdefault(folder, Kept()))

    def ends(self, folder: Path, change: Callable[[Catalog, Callable[[], None]], None], step: int) -> bool:
        """What lies in a process dies with it: here the change alone ends."""
        left = [step]

        def point() -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Cut

        try:
            change(self.make(folder), point)
        except Cut:
            return False
        return True


# ------------------------------------------------------------------------------------------- a bank over each of them


@pytest.fixture(params=["folder", "memory"])
def placed(request: pytest.FixtureRequest, folder: Path, kit: Any, monkeypatch: pytest.MonkeyPatch) -> Bank:
    """A bank in its folder, and one of which only the work of changes lies there: no database can be opened."""
    if request.param == "folder":
        return request.getfixturevalue("bank")
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: pytest.fail("SQLite was asked"))
    return Bank.create(
        folder / "bank", kit.base, objects=MemoryObjects(Store(), folder), catalog=MemoryCatalog(Kept())
    )


def again(bank: Bank) -> Bank:
    """The same bank as another process opens it."""
    return Bank.open(bank.path, objects=bank.objects, catalog=bank.catalog)


def names(bank: Bank) -> list[str]:
    snapshot = again(bank).snapshot()
    return [one.name for one in (*snapshot.tasks, *snapshot.compositions)]


def test_a_bank_lives_on_any_catalog(placed: Bank, kit: Any) -> None:
    kit.add_task(placed, "a", weight=1.0)
    kit.add_task(placed, "b", weight=2.0, context=(placed.snapshot().adapter_of("a").digest,))
    kit.compose(placed, "both", ("a", "b"), content=kit.safetensors(0.5))
    snapshot = again(placed).snapshot()
    assert snapshot.base == kit.base
    assert snapshot.adapter_of("b").context == (snapshot.adapter_of("a").digest,)
    assert snapshot.adapter_of("b").files.keys() == kit.files(1.0).keys()
    assert snapshot.adapter_of("a").config == kit.adapter.config
    assert snapshot.dataset("a", "train") == snapshot.datasets[0]
    assert snapshot.dataset("a", "train").rows == 400
    assert snapshot.composition("both").adapters == tuple(snapshot.adapter_of(name).digest for name in "ab")
    assert placed.verify(full=True) == []
    assert placed.gc(dry_run=False, grace_hours=-1).paths == ()


def test_changes_and_their_undoing(placed: Bank, kit: Any) -> None:
    for name in "ab":
        kit.add_task(placed, name, weight=float(ord(name)))
    kit.compose(placed, "both", ("a", "b"))
    placed.rename("a", "c")
    placed.set_note("c", "a note")
    placed.change_tags("both", add=["x", "y"])
    with pytest.raises(ExistsError, match="needed by the composition both"):
        placed.remove("c")
    placed.remove("c", cascade=True)
    assert names(placed) == ["b"]
    kit.replace_task(placed, "b", weight=9.0)
    assert [task.position for task in placed.snapshot().tasks] == [3]
    kinds = [entry.kind for entry in read_history(placed.catalog)]
    assert kinds == ["replace", "remove", "tag", "note", "rename", "compose", "add-task", "add-task", "init"]
    undone = [placed.undo().event.kind for _ in range(6)]
    assert undone == kinds[:6]
    assert names(placed) == ["a", "b"]
    assert placed.snapshot().task("a").note is None
    assert placed.verify(full=True) == []


def test_what_changes_is_seen_and_scores_follow_a_name(placed: Bank, kit: Any) -> None:
    kit.add_task(placed, "a")
    states = [placed.last_change()]
    placed.add_evaluations(kit.evaluation(key=key, task="a", created_at="") for key in ("k1", "k0"))
    placed.add_evaluations([kit.evaluation(key="k1", task="a", value=0.0)])
    assert [(one.key, one.value) for one in again(placed).all_evaluations()] == [("k1", 0.875), ("k0", 0.875)]
    assert placed.last_change() == states[0]
    placed.rename("a", "z")
    assert placed.last_change() != states[0]
    assert [one.key for one in placed.task_scores("z")] == ["k1", "k0"]
    assert placed.evaluations(["k0"])["k0"].task == "z"


def test_reservations(placed: Bank, kit: Any) -> None:
    with placed.reserve("add-task", "mine", {"seed": 7}) as operation:
        (live,) = again(placed).operations()
        assert (live.name, live.alive) == ("mine", True)
        with pytest.raises(BusyError):
            again(placed).reserve("compose", "other", {})
        with pytest.raises(BusyError):
            again(placed).gc(dry_run=False)
        (operation.work / "checkpoint-1").mkdir()
        kit.commit_task(operation, "mine")
    assert placed.operations() == []
    with suppress(KeyboardInterrupt), placed.reserve("add-task", "killed", {"seed": 8}) as operation:
        (operation.work / "checkpoint-1").mkdir()
        raise KeyboardInterrupt
    with pytest.raises(ExistsError, match="has checkpoints"):
        placed.reserve("add-task", "killed", {})
    with placed.resume("add-task", "killed") as operation:
        assert operation.config == {"seed": 8}
        kit.commit_task(operation, "killed", weight=3.0)
    assert names(placed) == ["mine", "killed"]
    with pytest.raises(NotFoundError):
        placed.discard("killed")


def test_a_commit_that_is_cut_off_leaves_the_bank_as_it_was(placed: Bank, kit: Any, monkeypatch: Any) -> None:
    """Before each row of it; the files that were placed are what gc finds."""
    kit.add_task(placed, "a", weight=1.0)
    before = placed.snapshot()
    with placed.catalog.write() as transaction:
        kind = type(transaction)
    sound = kind.insert
    for step in range(2, 13):  # the first is the reservation's
        monkeypatch.setattr(kind, "insert", counted(sound, [step]))
        with pytest.raises(Cut):
            kit.add_task(placed, "b", weight=2.0)
        assert again(placed).snapshot() == before
        assert placed.operations() == []
        assert placed.verify(full=True) == []
    assert len(placed.gc(dry_run=False, grace_hours=-1).paths) == 4
    monkeypatch.setattr(kind, "insert", counted(sound, [13]))
    kit.add_task(placed, "b", weight=2.0)
    assert names(placed) == ["a", "b"]


def test_rows_that_were_changed_behind_it_are_found(placed: Bank, kit: Any) -> None:
    kit.add_task(placed, "a")
    with placed.catalog.write() as transaction:
        transaction.update("adapters", {"id": 1}, seed=8)
    (finding,) = placed.verify(full=False)
    assert finding.subject == "adapters '1'"
    with pytest.raises(DamagedError, match="nothing is deleted"):
        placed.gc(dry_run=False)


def test_a_catalog_holds_one_bank(placed: Bank, kit: Any, tmp_path: Path) -> None:
    with pytest.raises(ExistsError, match="holds a bank already"):
        Bank.create(tmp_path / "other", kit.base, catalog=placed.catalog)
    assert not Bank.exists(tmp_path / "other")
