"""What the fault programme found once: other things in a file's place, and what was not yet durable."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.definitions import read_revision
from lorabank.bank.failures import database_error
from lorabank.bank.objects import layout, store
from lorabank.core.errors import DamagedError


def replace(path: Path, kind: str) -> None:
    elsewhere = path.parents[1] / "elsewhere"
    shutil.move(path, elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["bank.json", "bank.db"])
def test_something_else_in_place_of_a_file_of_the_bank_is_damage(bank, name, kind):
    replace(bank.path / name, kind)
    with pytest.raises(DamagedError, match=r"bank\.(json|db)"):
        Bank.open(bank.path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_something_else_in_place_of_a_blob_is_not_read(bank, kit, kind):
    kit.add_task(bank, "a")
    digest = bank.snapshot().dataset("a", "eval").blob
    replace(bank.path / "blobs" / digest[:2] / digest, kind)
    with pytest.raises(DamagedError, match=digest[:12]):
        bank.read_blob(digest)


def test_a_manifest_that_differs_from_the_database_is_found(bank, kit):
    manifest = bank.path / "bank.json"
    changed = manifest.read_bytes().replace(b'"created_with": "', b'"created_with": "9')
    kit.overwrite(manifest, changed)
    (finding,) = bank.verify(full=False)
    assert finding.subject == "bank.json"


def test_what_lies_there_already_is_made_durable_too(bank, kit, monkeypatch):
    """A process that was killed right after its rename has not synced the folder."""
    kit.add_task(bank, "a", weight=1.0)
    synced: list[Path] = []
    sound = store.sync_folder
    monkeypatch.setattr(store, "sync_folder", lambda path: (synced.append(path), sound(path)))
    kit.add_task(bank, "b", weight=1.0)
    statistics = bank.snapshot().task("a").statistics
    assert statistics == bank.snapshot().task("b").statistics
    assert {bank.path / "blobs", bank.path / "blobs" / statistics[:2], bank.path / "adapters"} <= set(synced)


def test_folders_that_were_missing_are_made_durable(bank, kit, monkeypatch):
    (bank.path / "adapters").rmdir()
    synced: list[Path] = []
    sound = layout.sync_folder
    monkeypatch.setattr(layout, "sync_folder", lambda path: (synced.append(path), sound(path)))
    bank.gc(dry_run=False)
    assert bank.path in synced


def test_a_failing_disk_is_no_missing_revision():
    class Failing:
        def execute(self, _: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError):
        read_revision(Failing())


def test_a_schema_whose_keys_no_longer_match_is_damage(tmp_path):
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE a (id TEXT)")
        connection.execute("CREATE TABLE b (a TEXT REFERENCES a (id))")
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("PRAGMA foreign_key_check")
    connection.close()
    assert isinstance(database_error(caught.value, tmp_path, None), DamagedError)
