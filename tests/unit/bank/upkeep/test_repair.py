"""Repair: what is damaged is put aside, fetched by its digest, or marked, and nothing that is good is touched."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.objects.layout import Layout
from lorabank.bank.upkeep.repair import RepairResult, repair
from lorabank.core.errors import BusyError, DamagedError, NotFoundError
from tests.unit.bank.test_kill import run_killed


@pytest.fixture
def filled(bank, kit) -> Bank:
    """Tasks a <- b (b was trained on top of a) and c; compositions ab and c-only."""
    first = kit.add_task(bank, "a", weight=1.0)
    kit.add_task(bank, "b", weight=2.0, context=(first.adapter,))
    kit.add_task(bank, "c", weight=3.0)
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    kit.compose(bank, "c-only", ("c",))
    return bank


@pytest.fixture
def copy(filled, folder) -> Path:
    return Path(shutil.copytree(filled.path, folder / "copy"))


def mended(bank: Bank, source: Path | None = None) -> RepairResult:
    return repair(Layout(bank.path), source)


def weights(bank: Bank, task: str) -> Path:
    return bank.adapter_path(bank.snapshot().adapter_of(task).digest) / "adapter_model.safetensors"


def test_a_sound_bank_is_not_touched(filled, kit):
    before = kit.tree(filled.path)
    assert mended(filled) == RepairResult((), (), (), (), ())
    assert kit.tree(filled.path) == before


def test_a_damaged_adapter_is_put_aside_and_only_what_needs_it_is_marked(filled, kit):
    path = weights(filled, "a")
    damaged = kit.safetensors(1.5, -2.0)
    kit.overwrite(path, damaged)
    done = mended(filled)
    assert done.quarantined == (str(path.relative_to(filled.path)),)
    assert done.set_aside == ("a", "b")  # b was trained on top of a
    (kept,) = (file for file in (filled.path / "quarantine").rglob("*") if file.is_file())
    assert kept.read_bytes() == damaged
    snapshot = filled.snapshot()
    assert [task.name for task in snapshot.tasks] == ["c"]
    assert [task.name for task in snapshot.damaged_tasks] == ["a", "b"]
    assert [made.name for made in snapshot.compositions] == ["c-only"]
    filled.verified_adapter(snapshot.adapter_of("c").digest)
    for name in ("a", "ab"):
        with pytest.raises(DamagedError, match=f"{name!r} was set aside") as caught:
            snapshot.task(name) if name == "a" else snapshot.composition(name)
        assert caught.value.commands[0] == ("doctor", "--repair", "--from", "COPY")
    found = filled.verify(full=True)
    assert [finding.subject for finding in found if finding.kind == "task"] == ["task a", "task b"]
    assert any("adapter_model.safetensors is missing" in finding.message for finding in found)
    filled.gc(dry_run=False, grace_hours=-1)  # what is left of them stays
    assert (path.parent / "adapter_config.json").is_file()
    assert kept.is_file()
    assert mended(filled) == RepairResult((), (), (), (), ())


def test_a_name_that_was_set_aside_is_taken_until_it_is_removed(filled, kit):
    kit.overwrite(weights(filled, "c"), b"")
    mended(filled)
    assert filled.remove("c", cascade=True) == ("c", "c-only")
    assert filled.verify(full=True) == []
    kit.add_task(filled, "c", weight=9.0)


def test_every_damaged_file_comes_back_from_a_copy_of_the_bank(filled, copy, kit):
    before = {path: data for path, data in kit.tree(filled.path).items() if path.startswith(("adapters", "blobs"))}
    paths = [filled.path / name for name in sorted(before)]
    for number, path in enumerate(paths):
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            kit.overwrite(path, b"other")
        else:
            path.unlink()
            path.symlink_to("/etc/hostname")
    assert mended(filled).set_aside == ("a", "b", "c")
    done = mended(filled, copy)
    assert done.brought_back == ("a", "b", "c")
    assert len(done.fetched) == 3 + 3 * 3 + 1  # adapters; statistics, rows and inputs; one selector
    after = {path: data for path, data in kit.tree(filled.path).items() if path.startswith(("adapters", "blobs"))}
    assert after == before
    assert filled.verify(full=True) == []


def test_a_damaged_copy_gives_nothing(filled, copy, kit):
    path = weights(filled, "c")
    kit.overwrite(copy / path.relative_to(filled.path), kit.safetensors(7.0, 7.0))
    path.unlink()
    done = mended(filled, copy)
    assert (done.fetched, done.set_aside) == ((), ("c",))


def test_an_exported_folder_gives_an_adapter_back(filled, folder, kit):
    path = weights(filled, "c")
    exported = folder / "exported"
    shutil.copytree(path.parent, exported)
    (exported / "README.md").write_text("an adapter")
    kit.overwrite(path, b"gone")
    done = mended(filled, exported)
    assert done.fetched == (str(path.parent.relative_to(filled.path)),)
    assert filled.verify(full=True) == []


def test_kept_rows_that_are_lost_set_no_task_aside(filled):
    digest = filled.snapshot().dataset("c", "eval").blob
    (filled.path / "blobs" / digest[:2] / digest).unlink()
    assert mended(filled).set_aside == ()
    assert [finding.kind for finding in filled.verify(full=False)] == ["blob"]
    assert len(filled.snapshot().tasks) == 3


def test_files_that_do_not_belong_are_put_aside(filled):
    stranger = weights(filled, "a").with_name("adapter_model.bin")
    stranger.write_bytes(b"pickle")
    done = mended(filled)
    assert done.quarantined == (str(stranger.relative_to(filled.path)),)
    assert filled.verify(full=True) == []


def test_a_folder_that_became_a_link_is_put_aside_and_what_it_leads_to_stays(filled, copy, folder):
    path = weights(filled, "a").parent
    outside = folder / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    assert mended(filled, copy).quarantined == (str(path.relative_to(filled.path)),)
    assert filled.verify(full=True) == []
    assert sorted(entry.name for entry in outside.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_what_dead_operations_left_is_swept(filled):
    child = os.fork()
    if child == 0:
        operation = filled.reserve("compose", "mix", {})
        operation.stage_blob(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    child = os.fork()
    if child == 0:
        operation = filled.reserve("add-task", "d", {})
        (operation.work / "checkpoint-5").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    done = mended(filled)
    assert all("compose" in line or line.startswith(("staging/", "work/")) for line in done.swept)
    assert list((filled.path / "staging").iterdir()) == []
    assert [operation.name for operation in filled.operations()] == ["d"]  # it can be resumed
    assert len(list((filled.path / "work").iterdir())) == 1


def test_nothing_is_repaired_beside_a_live_operation(filled):
    with filled.reserve("add-task", "d", {}), pytest.raises(BusyError, match="add-task 'd'"):
        mended(filled)


def test_nothing_is_repaired_by_rows_that_cannot_be_trusted(filled, kit):
    weights(filled, "a").unlink()
    with closing(sqlite3.connect(filled.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("UPDATE adapter_files SET bytes = bytes + 1 WHERE adapter = 2")
    before = kit.tree(filled.path)
    with pytest.raises(DamagedError, match="nothing was repaired") as caught:
        mended(filled)
    assert caught.value.commands == (("restore", "BACKUP"),)
    assert kit.tree(filled.path) == before


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_a_lost_manifest_is_written_again(filled, kit, content):
    (filled.path / "bank.json").unlink()
    if content is not None:
        (filled.path / "bank.json").write_bytes(content)
    mended(filled)
    assert Bank.open(filled.path).id == filled.id
    assert filled.verify(full=True) == []


def test_a_changed_manifest_is_written_again(filled):
    manifest = filled.path / "bank.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"created_with": "', b'"created_with": "x'))
    assert [finding.subject for finding in filled.verify(full=False)] == ["bank.json"]
    mended(filled)
    assert manifest.read_bytes() == whole
    assert filled.verify(full=True) == []


def test_a_manifest_of_another_bank_stays_and_nothing_is_repaired(filled):
    manifest = filled.path / "bank.json"
    other = manifest.read_bytes().replace(filled.id.encode(), b"0" * len(filled.id))
    manifest.write_bytes(other)
    with pytest.raises(DamagedError):
        mended(filled)
    assert manifest.read_bytes() == other


def test_there_must_be_a_bank_and_a_source(filled, tmp_path):
    with pytest.raises(NotFoundError, match="no bank"):
        repair(Layout(tmp_path), None)
    with pytest.raises(NotFoundError, match="no folder"):
        mended(filled, tmp_path / "nowhere")


def test_killed_at_every_step_a_repair_loses_nothing_and_the_next_one_ends(filled, copy, kit, folder):
    path = weights(filled, "a")
    kit.overwrite(path, b"damaged")
    digest = filled.snapshot().task("c").statistics
    (filled.path / "blobs" / digest[:2] / digest).unlink()
    start = shutil.copytree(filled.path, folder / "start")
    step = 0
    while True:
        step += 1
        again = Path(shutil.copytree(start, folder / f"killed-{step}"))
        if not run_killed(lambda again=again: repair(Layout(again), copy), step):
            break
        mended(Bank.open(again), copy)
        assert Bank.open(again).verify(full=True) == [], f"step {step}"
        kept = [file.read_bytes() for file in (again / "quarantine").rglob("*") if file.is_file()]
        assert kept == [b"damaged"], f"step {step}"
        shutil.rmtree(again)
    assert step > 20
