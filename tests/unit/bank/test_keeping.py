"""Verification, removal and collection: what the bank keeps, what it finds, what it lets go."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.columns import TABLES
from lorabank.core.errors import BusyError, ConfigError, DamagedError, ExistsError, LorabankError, NotFoundError


@pytest.fixture
def filled(bank, kit) -> Bank:
    """Tasks a <- b (b was trained on top of a) and c, compositions ab and c-only."""
    first = kit.add_task(bank, "a", weight=1.0)
    kit.add_task(bank, "b", weight=2.0, context=(first.adapter,))
    kit.add_task(bank, "c", weight=3.0)
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    kit.compose(bank, "c-only", ("c",))
    bank.add_evaluations([kit.evaluation()])
    return bank


def stored_files(bank: Bank) -> list[Path]:
    return sorted(path for name in ("adapters", "blobs") for path in (bank.path / name).rglob("*") if path.is_file())


def test_a_sound_bank_has_no_findings(filled):
    assert filled.verify(full=False) == filled.verify(full=True) == []


def test_every_missing_file_is_found_and_named(filled):
    files = stored_files(filled)
    assert len(files) == 3 * 2 + 3 * 3 + 1  # adapters; statistics, rows and inputs; one selector
    for path in files:
        hidden = path.with_name("hidden")
        path.rename(hidden)
        for full in (False, True):
            findings = [finding for finding in filled.verify(full=full) if "missing" in finding.message]
            assert [path.name in finding.message for finding in findings] == [True]
            assert all(finding.hint and finding.commands for finding in findings)
        hidden.rename(path)
    assert filled.verify(full=True) == []


@pytest.mark.parametrize("kind", ["link", "folder", "longer"])
def test_files_of_another_kind_are_found_without_reading_them(filled, kind, kit):
    for path in stored_files(filled):
        content = path.read_bytes()
        path.unlink()
        if kind == "link":
            (filled.path / "elsewhere").write_bytes(content)
            path.symlink_to(filled.path / "elsewhere")
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_bytes(content + b"x")
        assert len(filled.verify(full=False)) == 1
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(content)
    assert filled.verify(full=True) == []


def test_all_parts_together_are_a_full_check(filled, kit):
    for path in stored_files(filled)[::3]:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        kit.overwrite(path, bytes(content))
    full = filled.verify(full=True)
    assert len(full) > 3
    for count in (1, 2, 5):
        parts = [filled.verify(full=False, part=(number, count)) for number in range(1, count + 1)]
        assert sorted(finding for part in parts for finding in part) == sorted(full)
        assert parts[0] == filled.verify(full=False, part=(1, count))
    assert any(len(filled.verify(full=False, part=(number, 5))) < len(full) for number in range(1, 6))
    for part in ((0, 5), (6, 5), (1, 0), (-1, 5)):
        with pytest.raises(ConfigError, match="no such part"):
            filled.verify(full=False, part=part)


def test_every_flipped_bit_of_a_file_is_found(filled, kit):
    generator = random.Random(1)
    for path in stored_files(filled):
        content = path.read_bytes()
        for position in generator.sample(range(len(content)), min(6, len(content))):
            changed = bytearray(content)
            changed[position] ^= 1 << generator.randrange(8)
            kit.overwrite(path, bytes(changed))
            assert len(filled.verify(full=True)) == 1
        kit.overwrite(path, content)
    assert filled.verify(full=True) == []


def test_a_file_that_does_not_belong_is_found_but_does_not_stop_loading(filled):
    digest = filled.snapshot().adapter_of("a").digest
    (filled.adapter_path(digest) / "adapter_model.bin").write_bytes(b"pickle")
    (finding,) = filled.verify(full=False)
    assert "'adapter_model.bin' does not belong" in finding.message
    assert filled.verified_adapter(digest) == filled.adapter_path(digest)


def test_a_damaged_adapter_is_not_loaded_the_others_are(filled, kit):
    snapshot = filled.snapshot()
    path = filled.adapter_path(snapshot.adapter_of("a").digest) / "adapter_model.safetensors"
    kit.overwrite(path, kit.safetensors(1.5, -2.0))  # same size, other values
    assert filled.verify(full=False) == []
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors has different content") as caught:
        filled.verified_adapter(snapshot.adapter_of("a").digest)
    assert caught.value.exit_code == 8
    filled.verified_adapter(snapshot.adapter_of("b").digest)
    with pytest.raises(NotFoundError):
        filled.verified_adapter("0" * 64)


def test_a_damaged_blob_is_not_read(filled, kit):
    digest = filled.snapshot().dataset("a", "eval").blob
    path = filled.path / "blobs" / digest[:2] / digest
    kit.overwrite(path, b"PAR1 rows of b")
    with pytest.raises(DamagedError, match="its content is not what was stored"):
        filled.read_blob(digest)
    path.unlink()
    with pytest.raises(DamagedError, match="No such file"):
        filled.read_blob(digest)
    with pytest.raises(DamagedError, match="not a digest"):
        filled.read_blob("../bank.json")


SEALED = [(table, "TRUE") for table in TABLES]
SEALED += [(table, "state = 'removed'") for table in ("tasks", "compositions")]


@pytest.mark.parametrize(("table", "which"), SEALED)
def test_every_changed_column_of_a_row_is_found(filled, table, which, kit):
    """Each immutable column of each table, changed behind the bank's back."""
    if table == "operations":
        filled.reserve("add-task", "d", {})
    if "removed" in which:
        snapshot = filled.snapshot()
        filled.remove((snapshot.tasks if table == "tasks" else snapshot.compositions)[-1].name, cascade=True)
    changing = {"row_digest", "state", "pid", "boot_id", "host", "process_start", "seen_at"}
    with closing(sqlite3.connect(filled.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] not in changing]
        assert names
        for name in names:
            where = f"FROM {table} WHERE {which} ORDER BY rowid DESC"
            row, old = connection.execute(f"SELECT rowid, {name} {where}").fetchone()
            new = old + 1 if isinstance(old, int | float) else f"{old or ''}x"
            connection.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (new, row))
            findings = filled.verify(full=False)
            assert any(finding.kind == "row" and table in finding.subject for finding in findings), name
            rowid = new if name in ("id", "position") and isinstance(old, int) else row
            connection.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = ?", (old, rowid))
        assert filled.verify(full=False) == []


def test_a_deleted_row_of_an_adapter_file_is_found(filled):
    with closing(sqlite3.connect(filled.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM adapter_files WHERE adapter = 1 AND name LIKE '%.json'")
    (finding,) = filled.verify(full=False)
    assert "do not match the adapter's digest" in finding.message


def test_a_reference_to_nothing_is_found(filled):
    with closing(sqlite3.connect(filled.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM adapters WHERE id = 3")
    assert any("does not exist" in finding.message for finding in filled.verify(full=False))


def test_flipped_bits_of_the_database_are_found_or_without_effect(filled, kit):
    """SQLite alone lets most of these pass; nothing but our own errors may come out."""
    generator = random.Random(7)
    database = filled.path / "bank.db"
    content = database.read_bytes()
    truth = filled.snapshot()
    harmful = 0
    for _ in range(200):
        position, bit = generator.randrange(len(content)), generator.randrange(8)
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        kit.overwrite(database, bytes(changed))
        try:
            findings = Bank.open(filled.path).verify(full=True)
            if not findings:
                assert filled.snapshot() == truth, (position, bit)
            harmful += bool(findings)
        except LorabankError:
            harmful += 1
    assert harmful > 15
    kit.overwrite(database, content)
    assert filled.verify(full=True) == []


def test_removal_keeps_lineage_and_files(filled, kit):
    before = stored_files(filled)
    assert filled.remove("c-only") == ("c-only",)
    assert filled.remove("c") == ("c",)
    snapshot = filled.snapshot()
    assert [task.name for task in snapshot.tasks] == ["a", "b"]
    assert [(task.name, task.position, task.state) for task in snapshot.removed_tasks] == [("c", 3, "removed")]
    assert snapshot.removed_tasks[0].adapter in snapshot.adapters
    assert {data.task for data in snapshot.datasets} == {"a", "b"}
    assert stored_files(filled) == before
    for name in ("c", "c-only"):
        with pytest.raises(NotFoundError):
            filled.remove(name)
    assert kit.add_task(filled, "c", weight=4.0).position == 4
    assert [task.name for task in filled.snapshot().tasks] == ["a", "b", "c"]


def test_a_task_that_a_composition_needs_stays_unless_cascade(filled):
    before = filled.snapshot()
    for dry_run in (False, True):
        with pytest.raises(ExistsError, match="needed by the composition ab") as caught:
            filled.remove("a", dry_run=dry_run)
        assert caught.value.commands == (("remove", "a", "--cascade"),)
    assert filled.remove("a", cascade=True, dry_run=True) == ("a", "ab")
    assert filled.snapshot() == before
    assert filled.remove("a", cascade=True) == ("a", "ab")
    assert [task.name for task in filled.snapshot().tasks] == ["b", "c"]
    assert [composition.name for composition in filled.snapshot().compositions] == ["c-only"]
    with pytest.raises(NotFoundError, match="Did you mean 'c-only'"):
        filled.remove("c-onl")


def test_collection_deletes_what_nothing_refers_to(filled, kit):
    snapshot = filled.snapshot()
    assert filled.gc(dry_run=False, grace_hours=0).paths == ()
    filled.remove("c", cascade=True)
    inputs = snapshot.adapter_of("c").objects["inputs"]
    blobs = (snapshot.task("c").statistics, snapshot.dataset("c", "eval").blob, inputs)
    expected = {
        f"adapters/{snapshot.adapter_of('c').digest}",
        *(f"blobs/{blob[:2]}/{blob}" for blob in blobs),
    }
    size = sum(map(len, kit.files(3.0, -2.0).values())) + len(kit.safetensors(3.0, 0.5, name="centroids"))
    size += len(b"PAR1 rows of c") + len(kit.safetensors(3.0, 0.75, name="inputs"))
    assert filled.gc(dry_run=False).paths == ()  # younger than the grace
    planned = filled.gc(dry_run=True, grace_hours=0)
    assert (set(planned.paths), planned.bytes) == (expected, size)
    assert all((filled.path / path).exists() for path in expected)
    assert filled.gc(dry_run=False, grace_hours=0) == planned
    assert not any((filled.path / path).exists() for path in expected)
    assert list((filled.path / "trash").iterdir()) == []
    assert filled.verify(full=True) == []
    assert filled.gc(dry_run=False, grace_hours=0).paths == ()


def test_an_adapter_stays_while_a_later_one_was_trained_on_it(filled):
    below = filled.snapshot().adapter_of("a").digest
    filled.remove("a", cascade=True)
    assert f"adapters/{below}" not in filled.gc(dry_run=False, grace_hours=0).paths
    assert filled.verified_adapter(below).is_dir()
    filled.remove("b")
    assert f"adapters/{below}" in filled.gc(dry_run=False, grace_hours=0).paths


def test_objects_of_an_adapter_go_with_its_task(filled, kit):
    """Even where the adapter itself stays below a later one; what another task names too stays."""
    snapshot = filled.snapshot()
    inputs = {name: snapshot.adapter_of(name).objects["inputs"] for name in ("a", "c")}
    kit.add_task(filled, "like-c", weight=3.0)
    for name in ("a", "c"):
        filled.remove(name, cascade=True)
    removed = {task.name: filled.snapshot().by_position[task.position] for task in filled.snapshot().removed_tasks}
    assert {name: adapter.objects for name, adapter in removed.items()} == {
        name: {"inputs": digest} for name, digest in inputs.items()
    }
    filled.gc(dry_run=False, grace_hours=0)
    assert filled.verified_adapter(removed["a"].digest).is_dir()
    with pytest.raises(DamagedError, match="No such file"):
        filled.read_blob(inputs["a"])
    assert filled.read_blob(inputs["c"]) == kit.safetensors(3.0, 0.75, name="inputs")
    assert filled.verify(full=True) == []


def test_grace_counts_from_the_age_of_the_file(filled):
    digest = filled.snapshot().adapter_of("c").digest
    filled.remove("c", cascade=True)
    for hours, expected in ((23, 0), (25, 1)):
        then = time.time() - hours * 3600
        os.utime(filled.adapter_path(digest), (then, then))
        assert len(filled.gc(dry_run=True).paths) == expected


def test_collection_sweeps_dead_operations_and_leaves_what_it_does_not_know(filled):
    strangers = [
        filled.path / "adapters" / "my-notes",
        filled.path / "staging" / "mine",
        filled.path / "work" / "mine",
    ]
    for path in strangers:
        path.mkdir()
    dead = "0" * 32
    for name in ("staging", "work"):
        (filled.path / name / dead).mkdir()
        (filled.path / name / dead / "half").write_bytes(b"12345")
    trashed = f"trash/{'ab' * 8}-{'0' * 64}"
    (filled.path / trashed).write_bytes(b"123")
    (filled.path / "trash" / "notes").write_bytes(b"somebody's")
    result = filled.gc(dry_run=False)
    assert (result.paths, result.bytes) == ((f"staging/{dead}", trashed, f"work/{dead}"), 13)
    assert all(path.is_dir() for path in strangers)


def test_collection_keeps_checkpoints_that_can_be_resumed(filled):
    operation = filled.reserve("add-task", "d", {})
    (operation.work / "checkpoint-10").mkdir()
    operation.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert filled.gc(dry_run=False, grace_hours=0).paths == ()
    assert (operation.work / "checkpoint-10").is_dir()


def test_collection_never_follows_a_link(filled, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.tex").write_text("ten years")
    (filled.path / "adapters" / ("a" * 64)).symlink_to(outside)
    (filled.path / "trash" / f"{'ab' * 8}-{'a' * 64}").symlink_to(outside)
    filled.gc(dry_run=False, grace_hours=-1)
    assert (outside / "thesis.tex").read_text(encoding="utf-8") == "ten years"
    assert not (filled.path / "adapters" / ("a" * 64)).is_symlink()


def test_collection_deletes_nothing_when_a_row_cannot_be_trusted(filled):
    filled.remove("c", cascade=True)
    with closing(sqlite3.connect(filled.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("UPDATE adapter_context SET member = 3")
    before = stored_files(filled)
    with pytest.raises(DamagedError, match="nothing is deleted"):
        filled.gc(dry_run=False, grace_hours=0)
    assert stored_files(filled) == before


def test_collection_waits_for_writers(filled, monkeypatch):
    import lorabank.bank.locks as locks

    with locks.bank_lock(filled.path / "lock", exclusive=False), monkeypatch.context():
        monkeypatch.setattr(locks.bank_lock.__wrapped__, "__kwdefaults__", {"timeout": 0.05})
        with pytest.raises(BusyError, match="holds the lock"):
            filled.gc(dry_run=False, grace_hours=0)
