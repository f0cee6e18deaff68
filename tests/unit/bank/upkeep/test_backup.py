"""Backups of the database and of a whole bank, and putting them back: whole or not at all, killed at every step."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.errors import (
    BusyError,
    ConfigError,
    DamagedError,
    ExistsError,
    IncompatibleError,
    NotFoundError,
)
from tests.unit.bank.test_kill import run_killed


@pytest.fixture
def filled(bank, kit) -> Bank:
    kit.add_task(bank, "a", weight=1.0)
    kit.add_task(bank, "b", weight=2.0)
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    bank.add_evaluations([kit.evaluation()])
    return bank


def names(path: Path) -> list[str]:
    snapshot = Bank.open(path).snapshot()
    return [record.name for record in (*snapshot.tasks, *snapshot.compositions)]


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


# ------------------------------------------------------------------------------------------ of the database


def test_a_backup_is_a_checked_private_copy_and_changes_nothing_else(filled, kit):
    before = kit.tree(filled.path)
    made = api.backup(filled.path)
    path = Path(made.path)
    assert path.parent == filled.path / "backups"
    assert (made.tasks, made.files) == (2, 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    after = kit.tree(filled.path)
    assert {name: data for name, data in after.items() if not name.startswith("backups/")} == before
    assert list((filled.path / "staging").iterdir()) == []


def test_three_backups_are_kept(filled):
    made = [Path(api.backup(filled.path).path).name for _ in range(5)]
    assert sorted(path.name for path in (filled.path / "backups").iterdir()) == made[2:]


@pytest.mark.parametrize("damage", ["row", "page"])
def test_a_damaged_database_replaces_no_older_backup(filled, damage):
    old = [Path(api.backup(filled.path).path).name for _ in range(3)]
    if damage == "row":
        execute(filled.path / "bank.db", "UPDATE adapters SET r = 9")
    else:
        data = bytearray((filled.path / "bank.db").read_bytes())
        data[4096:8192] = os.urandom(4096)
        (filled.path / "bank.db").write_bytes(bytes(data))
    with pytest.raises(DamagedError):
        api.backup(filled.path)
    assert sorted(path.name for path in (filled.path / "backups").iterdir()) == old
    assert list((filled.path / "staging").iterdir()) == []


def test_restoring_brings_back_and_takes_away_and_keeps_what_was_there(filled, kit):
    made = api.backup(filled.path)
    filled.remove("a", cascade=True)
    kit.add_task(filled, "c", weight=3.0)
    now = names(filled.path)
    planned = api.restore(filled.path, Path(made.path).name, dry_run=True)
    assert (planned.back, planned.gone, planned.kept) == (("a",), ("c",), None)
    assert names(filled.path) == now
    assert len(list((filled.path / "backups").iterdir())) == 1
    done = api.restore(filled.path, made.path)
    assert (done.back, done.gone, done.missing) == (("a",), ("c",), ())
    assert names(filled.path) == ["a", "b", "ab"]
    assert filled.verify(full=True) == []
    api.restore(filled.path, done.kept)
    assert names(filled.path) == now
    assert filled.verify(full=True) == []
    kit.add_task(filled, "d", weight=4.0)
    with closing(sqlite3.connect(filled.path / "bank.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_reader_beside_a_restore_sees_the_one_or_the_other(filled):
    made = api.backup(filled.path)
    filled.remove("ab")
    with closing(sqlite3.connect(filled.path / "bank.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        query = "SELECT count(*) FROM compositions WHERE state = 'ready'"
        assert reader.execute(query).fetchone() == (0,)
        api.restore(filled.path, made.path)
        assert reader.execute(query).fetchone() == (0,)
        reader.execute("COMMIT")
        assert reader.execute(query).fetchone() == (1,)


@pytest.mark.parametrize("left", [b"", b"not a database" * 400, None])
def test_a_database_that_cannot_be_read_is_moved_aside(filled, left):
    made = api.backup(filled.path)
    (filled.path / "bank.db").unlink()
    if left is not None:
        (filled.path / "bank.db").write_bytes(left)
    done = api.restore(filled.path, made.path)
    assert names(filled.path) == ["a", "b", "ab"]
    assert filled.verify(full=True) == []
    if left:
        assert (Path(done.kept) / "bank.db").read_bytes() == left


def test_a_backup_of_files_that_are_gone_is_refused_unless_asked_for(filled):
    made = api.backup(filled.path)
    filled.remove("a", cascade=True)
    filled.gc(dry_run=False, grace_hours=-1)
    with pytest.raises(DamagedError, match="not in the bank any more") as caught:
        api.restore(filled.path, made.path)
    assert caught.value.commands == (("restore", made.path, "--incomplete"),)
    assert names(filled.path) == ["b"]
    assert api.restore(filled.path, made.path, incomplete=True).missing != ()
    repaired = api.repair(filled.path)
    assert repaired.set_aside == ("a",)
    assert names(filled.path) == ["b"]


def test_what_is_no_backup_of_this_bank_is_refused(filled, kit, folder):
    made = Path(api.backup(filled.path).path)
    other = Bank.create(folder / "other", kit.base)
    foreign = api.backup(other.path).path
    with pytest.raises(IncompatibleError, match="another bank"):
        api.restore(filled.path, foreign)
    with pytest.raises(NotFoundError, match=made.name):
        api.restore(filled.path, "nothing.db")
    for content in (b"", b"SQLite format 3\x00" + bytes(500), b"text" * 500, made.read_bytes()[:9000]):
        bad = folder / "bad.db"
        bad.write_bytes(content)
        with pytest.raises(DamagedError):
            api.restore(filled.path, bad)
    shutil.copyfile(made, bad)
    execute(bad, "CREATE TRIGGER t AFTER INSERT ON tasks BEGIN DELETE FROM blobs; END")
    with pytest.raises(DamagedError, match="not a database of lorabank"):
        api.restore(filled.path, bad)
    shutil.copyfile(made, bad)
    execute(bad, "UPDATE alembic_version SET version_num = 'zzz9'")
    with pytest.raises(IncompatibleError, match="zzz9"):
        api.restore(filled.path, bad)
    assert names(filled.path) == ["a", "b", "ab"]
    assert filled.verify(full=True) == []


def test_nothing_is_restored_beside_a_live_operation(filled):
    made = api.backup(filled.path)
    with filled.reserve("add-task", "d", {}), pytest.raises(BusyError, match="add-task 'd'"):
        api.restore(filled.path, made.path)


# ------------------------------------------------------------------------------------------ of a whole bank


def test_a_copy_of_the_bank_is_a_bank_and_is_brought_up_to_date(filled, kit, folder):
    copy = folder / "copy"
    made = api.backup(filled.path, copy)
    assert (made.tasks, made.files) == (2, 2 + 2 * 3 + 1)
    assert names(copy) == names(filled.path)
    assert Bank.open(copy).verify(full=True) == []
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    kit.add_task(filled, "c", weight=3.0)
    filled.remove("ab")
    again = api.backup(filled.path, copy)
    assert (again.tasks, again.files) == (3, 1 + 3)
    assert names(copy) == names(filled.path) == ["a", "b", "c"]
    assert Bank.open(copy).verify(full=True) == []
    assert Bank.open(copy).snapshot() == filled.snapshot()


def test_a_copy_holds_no_reservation(filled, folder):
    with filled.reserve("add-task", "d", {}):
        api.backup(filled.path, folder / "copy")
    assert Bank.open(folder / "copy").operations() == []


def test_a_copy_goes_nowhere_where_something_else_lies(filled, kit, folder):
    mine, other = folder / "mine", folder / "other"
    mine.mkdir()
    (mine / "thesis.tex").write_text("ten years")
    Bank.create(other, kit.base)
    link = folder / "link"
    link.symlink_to(mine)
    for target, error in ((mine, ExistsError), (other, ExistsError), (link, ExistsError)):
        before = kit.tree(folder)
        with pytest.raises(error):
            api.backup(filled.path, target)
        after = kit.tree(folder)
        after.pop("other/lock", None), before.pop("other/lock", None)
        assert after == before
    with pytest.raises(ConfigError, match="is inside the bank"):
        api.backup(filled.path, filled.path / "work" / "copy")


def test_a_copy_that_went_on_by_itself_is_not_overwritten(filled, kit, folder):
    api.backup(filled.path, folder / "copy")
    kit.add_task(Bank.open(folder / "copy"), "mine", weight=8.0)
    with pytest.raises(IncompatibleError, match="it was changed separately"):
        api.backup(filled.path, folder / "copy")
    assert "mine" in names(folder / "copy")


def test_a_damaged_bank_is_not_copied_over_a_good_copy(filled, kit, folder):
    api.backup(filled.path, folder / "copy")
    kit.add_task(filled, "c", weight=3.0)
    digest = filled.snapshot().adapter_of("c").digest
    kit.overwrite(filled.adapter_path(digest) / "adapter_model.safetensors", kit.safetensors(4.0, 4.0))
    with pytest.raises(DamagedError, match="of task c"):
        api.backup(filled.path, folder / "copy")
    assert names(folder / "copy") == ["a", "b", "ab"]
    assert Bank.open(folder / "copy").verify(full=True) == []


def test_a_whole_bank_comes_back(filled, kit, folder):
    api.backup(filled.path, folder / "copy")
    before = filled.snapshot()
    shutil.rmtree(filled.path)
    planned = api.restore(filled.path, folder / "copy", dry_run=True)
    assert planned.back == ("a", "b")
    assert not filled.path.exists()
    assert api.restore(filled.path, folder / "copy").back == ("a", "b")
    assert Bank.open(filled.path).snapshot() == before
    assert Bank.open(filled.path).verify(full=True) == []
    digest = before.adapter_of("a").digest
    shutil.rmtree(filled.adapter_path(digest))
    (filled.path / "bank.json").unlink()
    api.restore(filled.path, folder / "copy")  # also over one that lost some of its files
    assert Bank.open(filled.path).verify(full=True) == []
    other = Bank.create(folder / "other", kit.base)
    with pytest.raises(ExistsError, match="another bank"):
        api.restore(other.path, folder / "copy")


# --------------------------------------------------------------------------------------------- kills


def test_killed_at_every_step_a_backup_leaves_bank_and_copy_as_before_or_after(filled, kit, folder):
    copy = folder / "copy"
    api.backup(filled.path, copy)
    kit.add_task(filled, "c", weight=3.0)
    old, new, step = ["a", "b", "ab"], ["a", "b", "c", "ab"], 0
    seen = set()
    while True:
        step += 1
        target = Path(shutil.copytree(copy, folder / f"killed-{step}"))
        if not run_killed(lambda target=target: api.backup(filled.path, target), step):
            break
        found = names(target)
        assert found in (old, new), f"step {step}"
        seen.add(tuple(found))
        assert Bank.open(target).verify(full=True) == [], f"step {step}"
        api.backup(filled.path, target)
        assert names(target) == new
        shutil.rmtree(target)
    assert step > 20
    assert filled.verify(full=True) == []


@pytest.mark.slow
def test_killed_at_every_step_a_first_copy_is_none_or_whole(filled, folder):
    step = 0
    while True:
        step += 1
        target = folder / f"killed-{step}"
        if not run_killed(lambda target=target: api.backup(filled.path, target), step):
            break
        if Bank.exists(target):
            assert names(target) == ["a", "b", "ab"]
            assert Bank.open(target).verify(full=True) == []
        api.backup(filled.path, target)
        assert Bank.open(target).verify(full=True) == []
        shutil.rmtree(target)
    assert step > 60


def test_killed_at_every_step_a_restore_leaves_the_one_database_or_the_other(filled, folder):
    made = Path(api.backup(filled.path).path).name
    filled.remove("ab")
    start = shutil.copytree(filled.path, folder / "start")
    step = 0
    while True:
        step += 1
        again = Path(shutil.copytree(start, folder / f"killed-{step}"))
        if not run_killed(lambda again=again: api.restore(again, made), step):
            break
        assert names(again) in (["a", "b"], ["a", "b", "ab"]), f"step {step}"
        assert Bank.open(again).verify(full=True) == [], f"step {step}"
        api.restore(again, made)
        assert names(again) == ["a", "b", "ab"]
        shutil.rmtree(again)
    assert step > 8
