"""Copies under wrong clocks, and copies that rot: the newest made stays, and what is said to be whole is whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.objects.layout import Layout
from lorabank.bank.upkeep import copies
from lorabank.bank.upkeep.backup import back_up_database
from lorabank.core.errors import DamagedError, ExistsError, StorageError
from tests.migrations.test_migrations import next_schema as next_schema

DAY = timedelta(days=1)
NOON = datetime(2030, 1, 2, 12, tzinfo=UTC)

SetClock = Callable[[datetime], None]


@pytest.fixture
def filled(bank: Bank, kit: Any) -> Bank:
    kit.add_task(bank, "a", weight=1.0)
    kit.add_task(bank, "b", weight=2.0)
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    return bank


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Let the clock stand at a moment."""

    def stop_at(moment: datetime) -> None:
        class Stopped(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return moment.astimezone(tz)

        monkeypatch.setattr(copies, "datetime", Stopped)

    return stop_at


def made(bank: Bank) -> list[str]:
    return sorted(path.name for path in (bank.path / "backups").iterdir())


def names(database: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection:
        rows = connection.execute("SELECT name FROM compositions WHERE state = 'ready' UNION SELECT name FROM tasks")
        return {row[0] for row in rows}


CLOCKS = {
    "right": [NOON + n * DAY for n in range(6)],
    "frozen": [NOON] * 6,
    "ahead once": [NOON + DAY] * 3 + [NOON] * 3,
    "ahead by an age": [NOON.replace(year=9999)] * 3 + [NOON] * 3,
    "running backwards": [NOON - n * DAY for n in range(6)],
    "jumping": [NOON + (-1) ** n * n * DAY for n in range(6)],
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_copy_made_last_is_the_last_and_stays(filled, set_clock, clock):
    known = []
    for moment in CLOCKS[clock]:
        set_clock(moment)
        known.append(Path(api.backup(filled.path).path).name)
        assert made(filled) == known[-3:]
    assert known == sorted(known)
    assert len(set(known)) == len(known)


@pytest.mark.parametrize("clock", CLOCKS)
def test_what_a_restore_kept_is_there(filled, folder, kit, set_clock, clock):
    *before, last = CLOCKS[clock]
    for moment in before:
        set_clock(moment)
        old = shutil.copyfile(api.backup(filled.path).path, folder / "old.db")
    kit.compose(filled, "precious", ("a",))
    set_clock(last)
    kept = Path(api.restore(filled.path, old).kept)
    assert "precious" in names(kept)
    assert "precious" not in names(filled.path / "bank.db")
    api.restore(filled.path, kept)
    assert "precious" in names(filled.path / "bank.db")
    assert filled.verify(full=True) == []


@pytest.mark.parametrize("clock", ["frozen", "ahead once", "running backwards"])
def test_the_copy_before_an_upgrade_is_there(filled, set_clock, clock, next_schema):
    *before, last = CLOCKS[clock]
    for moment in before:
        set_clock(moment)
        api.backup(filled.path)
    next_schema()
    set_clock(last)
    copy = Path(api.upgrade(filled.path).backup)
    assert copy.name == made(filled)[-1]
    assert names(copy) == {"a", "b", "ab"}


def test_a_copy_that_is_put_back_is_not_rotated_away(filled, set_clock):
    set_clock(NOON + DAY)
    oldest, *_ = (Path(api.backup(filled.path).path) for _ in range(3))
    set_clock(NOON)
    kept = api.restore(filled.path, oldest.name).kept
    assert oldest.is_file()
    assert Path(kept).name == made(filled)[-1]


def test_other_files_among_the_copies_are_the_users(filled, set_clock):
    """Neither deleted nor counted, whatever they are called."""
    folder = filled.path / "backups"
    theirs = ["zzz.db", "before.db", "99991231T235959999999-0003.db.gz", "notes.txt"]
    for name in theirs:
        (folder / name).write_text("mine")
    (folder / "99991231T235959999999-0003.db").symlink_to(folder / "zzz.db")  # counts, so that it is passed
    (folder / "20990101T000000000000-0003.db").mkdir()
    for _ in range(5):
        last = Path(api.backup(filled.path).path)
        assert last.name.startswith("99991231T23596")
    found = [path for path in copies.copies(Layout(filled.path))]
    assert (len(found), found[-1]) == (3, last)
    assert all((folder / name).read_text(encoding="utf-8") == "mine" for name in theirs)
    assert api.restore(filled.path, last.name).kept


@pytest.mark.parametrize("revision", ["../../elsewhere", "a/b", "", "x" * 300, None])
def test_a_schema_becomes_no_path(bank, revision):
    with copies.next_copy(Layout(bank.path), revision) as path:
        assert path.parent == bank.path / "backups"
        assert path.name.endswith("-unknown.db")


def test_two_copies_at_one_moment_have_two_names(filled, set_clock):
    set_clock(NOON)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                back_up_database(Layout(filled.path))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert len(made(filled)) == 3


def test_a_copy_that_the_disk_spoils_is_none_and_replaces_none(filled, monkeypatch):
    before = [Path(api.backup(filled.path).path).name for _ in range(3)]
    filled_before = names(filled.path / "bank.db")
    rename = os.rename

    def spoil(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).parent.name == "backups":
            Path(target).chmod(0o600)
            data = bytearray(Path(target).read_bytes())
            data[data.index(b"tiny")] ^= 1
            Path(target).write_bytes(bytes(data))

    monkeypatch.setattr(os, "rename", spoil)
    for action in (lambda: api.backup(filled.path), lambda: api.restore(filled.path, before[0])):
        with pytest.raises(StorageError, match="differ from those written"):
            action()
        assert made(filled) == before
        assert names(filled.path / "bank.db") == filled_before


# ------------------------------------------------------------------------------------------- copies that rot


def files(bank: Path) -> list[Path]:
    """Every stored file, below the bank's folder."""
    found = (path for name in ("adapters", "blobs") for path in (bank / name).rglob("*"))
    return sorted(path.relative_to(bank) for path in found if path.is_file())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 1)


def gone(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    elsewhere = path.parents[3] / f"{path.parent.name}-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.fixture
def copy(filled: Bank, folder: Path) -> Path:
    api.backup(filled.path, folder / "copy")
    return folder / "copy"


DAMAGE = [flip, cut, gone, link]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_backup_mends_every_damaged_file_of_the_copy(filled, copy, damage, kit):
    kit.add_task(filled, "c", weight=3.0)
    for path in files(copy):
        damage(copy / path)
    assert Bank.open(copy).verify(full=True) != []
    result = api.backup(filled.path, copy)
    blobs = [path for path in files(filled.path) if path.parts[0] == "blobs"]
    assert len(result.mended) + result.files >= 4 + len(blobs)
    if damage is not gone:
        assert sum("of task a: adapter_model.safetensors" in line for line in result.mended) == 1
        assert any(line.startswith("the statistics of task b: ") for line in result.mended)
        assert any(line.startswith("the selector of composition ab: ") for line in result.mended)
    assert {path: (copy / path).read_bytes() for path in files(copy)} == {
        path: (filled.path / path).read_bytes() for path in files(filled.path)
    }
    assert Bank.open(copy).verify(full=True) == []
    assert api.backup(filled.path, copy).mended == ()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_restore_gives_every_damaged_file_its_bytes_back(filled, copy, damage):
    good = {path: (filled.path / path).read_bytes() for path in files(filled.path)}
    for path in good:
        damage(filled.path / path)
    planned = api.restore(filled.path, copy, dry_run=True)
    assert filled.verify(full=True) != []
    done = api.restore(filled.path, copy)
    assert (planned.mended, planned.kept) == (done.mended, None)
    if damage is not gone:
        assert sum("of task a: adapter_model.safetensors" in line for line in done.mended) == 1
        assert len(done.mended) == len(good)
    assert {path: (filled.path / path).read_bytes() for path in good} == good
    assert filled.verify(full=True) == []
    assert api.restore(filled.path, copy).mended == ()


def bring(verb: str, bank: Path, copy: Path) -> Any:
    return api.backup(bank, copy) if verb == "backup" else api.restore(bank, copy)


@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_what_is_damaged_on_both_sides_is_named_and_the_rest_is_mended(filled, copy, verb):
    good, mended = (filled.path, copy) if verb == "backup" else (copy, filled.path)
    digest, statistics = filled.snapshot().adapter_of("a").digest, filled.snapshot().task("b").statistics
    lost = Path("adapters", digest, "adapter_model.safetensors")
    also = Path("blobs", statistics[:2], statistics)
    whole = {path: (good / path).read_bytes() for path in files(good)}
    before = (mended / "bank.db").read_bytes()
    for path in whole:
        flip(mended / path)
    flip(good / lost)
    flip(good / also)
    with pytest.raises(DamagedError) as caught:
        bring(verb, filled.path, copy)
    assert caught.value.message == (
        f"{good}: adapter {digest[:12]} of task a: adapter_model.safetensors has different content "
        "from what was stored (SHA-256 differs), and 1 more"
    )
    assert (mended / "bank.db").read_bytes() == before
    wrong = {path for path in whole if (mended / path).read_bytes() != whole[path]}
    assert wrong == {lost, lost.with_name("adapter_config.json"), also}


def test_one_file_of_an_adapter_may_be_good_here_and_the_other_one_there(filled, copy):
    folder = Path("adapters", filled.snapshot().adapter_of("a").digest)
    flip(copy / folder / "adapter_config.json")
    flip(filled.path / folder / "adapter_model.safetensors")
    assert len(api.backup(filled.path, copy).mended) == 1
    assert Bank.open(copy).verify(full=True) == []
    assert len(api.restore(filled.path, copy).mended) == 1
    assert filled.verify(full=True) == []


def test_a_rotten_copy_is_not_restored_where_there_is_nothing(filled, copy, folder):
    path = next(path for path in files(copy) if path.parts[0] == "adapters")
    flip(copy / path)
    for dry_run in (True, False):
        with pytest.raises(DamagedError, match=f"{path.name} has different content"):
            api.restore(folder / "new", copy, dry_run=dry_run)
    assert not Bank.exists(folder / "new")


def test_a_damaged_row_of_the_copy_is_overwritten_and_named(filled, copy):
    with closing(sqlite3.connect(copy / "bank.db", isolation_level=None)) as connection:
        connection.execute("UPDATE adapters SET digest = replace(digest, substr(digest, 1, 1), 'f') WHERE id = 1")
    result = api.backup(filled.path, copy)
    assert result.mended == ("bank.db: row '1' of adapters was damaged",)
    assert Bank.open(copy).verify(full=True) == []


def test_a_copy_whose_database_cannot_be_read_is_named(filled, copy):
    """Nobody can say any more whether it went on by itself."""
    data = bytearray((copy / "bank.db").read_bytes())
    data[100:] = os.urandom(len(data) - 100)
    (copy / "bank.db").write_bytes(bytes(data))
    with pytest.raises(DamagedError, match=r"bank\.db") as caught:
        api.backup(filled.path, copy)
    assert "move" in caught.value.hint
    (copy / "bank.db").unlink()
    api.backup(filled.path, copy)
    assert Bank.open(copy).verify(full=True) == []


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1, "id": "x"', b"\xff" * 40])
@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_a_broken_manifest_is_written_again(filled, copy, verb, content, kit):
    good, mended = (filled.path, copy) if verb == "backup" else (copy, filled.path)
    kit.overwrite(mended / "bank.json", content)
    assert bring(verb, filled.path, copy).mended == ("bank.json was damaged",)
    assert (mended / "bank.json").read_bytes() == (good / "bank.json").read_bytes()
    assert Bank.open(mended).verify(full=True) == []


def test_a_broken_manifest_of_another_bank_stays(filled, folder, kit):
    other = Bank.create(folder / "other", kit.base)
    kit.overwrite(other.path / "bank.json", b"{}")
    with pytest.raises(ExistsError, match="another bank"):
        api.backup(filled.path, other.path)
    assert (other.path / "bank.json").read_bytes() == b"{}"
