from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import DamagedError, ExistsError, IncompatibleError, NotFoundError


def test_a_new_bank_is_empty_and_knows_its_base(bank, kit):
    snapshot = Bank.open(bank.path).snapshot()
    assert snapshot.id == bank.id == json.loads((bank.path / "bank.json").read_text(encoding="utf-8"))["id"]
    assert snapshot.format == 1
    assert snapshot.base == kit.base
    assert snapshot.tasks == snapshot.removed_tasks == snapshot.compositions == snapshot.datasets == ()
    assert snapshot.adapters == {}
    assert bank.operations() == bank.all_evaluations() == bank.verify(full=True) == []


def test_a_bank_is_private(bank, kit):
    kit.add_task(bank, "spam")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (bank.path, *bank.path.rglob("*"))}
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o700"}
    assert modes[bank.path / "bank.db"] == 0o600
    stored = [path for path in modes if path.is_file() and path.parts[-3] in ("adapters", "blobs")]
    stored += [path for path in (bank.path / "adapters").glob("*/*")]
    assert len(stored) >= 4
    assert {modes[path] for path in stored} == {0o444}


def test_settings_of_the_database(bank):
    with sqlite3.connect(bank.path / "bank.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA application_id").fetchone() == (0x4C6F5242,)
    connection.close()
    from lorabank.bank.catalog.connections import open_to_write

    with closing(open_to_write(bank.path / "bank.db")) as writer:
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
        assert writer.execute("PRAGMA foreign_keys").fetchone() == (1,)
        assert writer.execute("PRAGMA trusted_schema").fetchone() == (0,)


def test_create_refuses_a_bank_and_a_folder_with_other_things(bank, kit, tmp_path):
    before = kit.tree(bank.path)
    with pytest.raises(ExistsError, match="already"):
        Bank.create(bank.path, kit.base)
    assert kit.tree(bank.path) == before

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("ten years")
    with pytest.raises(ExistsError, match=r"thesis\.tex"):
        Bank.create(mine, kit.base)
    assert kit.tree(mine) == {"thesis.tex": b"ten years"}
    with pytest.raises(ExistsError, match="not a folder"):
        Bank.create(mine / "thesis.tex", kit.base)


def test_create_goes_on_where_it_was_cut_off(tmp_path, kit, monkeypatch):
    import lorabank.bank.creation as creation

    path = tmp_path / "bank"
    with monkeypatch.context() as patch:
        patch.setattr(creation, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Bank.create(path, kit.base)
    assert (path / "bank.db").exists()
    assert not Bank.exists(path)
    with pytest.raises(DamagedError, match=r"bank\.json is missing"):
        Bank.open(path)
    assert Bank.create(path, kit.base).snapshot().base == kit.base


def test_create_never_clears_a_database_with_tasks(bank, kit):
    kit.add_task(bank, "spam")
    (bank.path / "bank.json").unlink()
    before = kit.tree(bank.path)
    with pytest.raises(DamagedError, match="holds tasks"):
        Bank.create(bank.path, kit.base)
    assert kit.tree(bank.path) == before


def _create(path: Path, kit, results) -> None:
    try:
        Bank.create(path, kit.base)
        results.put("made")
    except ExistsError:
        results.put("exists")
    except BaseException as error:
        results.put(repr(error))


def test_four_processes_create_at_once(tmp_path, kit):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_create, args=(tmp_path / "bank", kit, results)) for _ in range(4)]
    for process in processes:
        process.start()
    said = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert said == ["exists", "exists", "exists", "made"]
    assert Bank.open(tmp_path / "bank").verify(full=True) == []


def test_open_without_a_bank_says_what_to_type(tmp_path):
    with pytest.raises(NotFoundError, match="no bank at") as caught:
        Bank.open(tmp_path / "nowhere")
    assert caught.value.exit_code == 3
    assert caught.value.commands == (("add-task", "NAME", "--data", "FILE"),)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("asked", ["bank", "demo"])
def test_open_without_a_bank_names_the_banks_nearby(tmp_path, monkeypatch, kit, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / ".hidden").mkdir()
    for folder in ("demo/seqlora", "demo/olora", ".hidden/bank"):
        Bank.create(tmp_path / folder, kit.base)
    with pytest.raises(NotFoundError, match=f"no bank at {asked}") as caught:
        Bank.open(Path(asked))
    assert caught.value.commands == (
        ("-b", "demo/olora", "list"),
        ("-b", "demo/seqlora", "list"),
        ("add-task", "NAME", "--data", "FILE"),
    )
    assert caught.value.hint.startswith("name one of the banks nearby with --bank; ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 5, "format": 1}', b'{"format": 1}', b"\xff\xfe"])
def test_open_refuses_a_broken_manifest(bank, kit, content):
    kit.overwrite(bank.path / "bank.json", content)
    with pytest.raises(DamagedError, match=r"bank\.json"):
        Bank.open(bank.path)


def test_a_newer_format_is_refused(bank, kit):
    kit.overwrite(bank.path / "bank.json", json.dumps({"id": bank.id, "format": 2, "created_with": "9.1"}).encode())
    with pytest.raises(IncompatibleError, match=r"format 2.*9\.1"):
        Bank.open(bank.path)


def test_the_manifest_of_another_bank_is_noticed(bank, kit):
    kit.overwrite(bank.path / "bank.json", json.dumps({"id": "0" * 32, "format": 1}).encode())
    with pytest.raises(DamagedError, match="different banks"):
        Bank.open(bank.path).snapshot()


@pytest.mark.parametrize(
    "damage",
    [
        lambda database: database.unlink(),
        lambda database: database.write_bytes(b""),
        lambda database: database.write_bytes(b"not a database" * 400),
        lambda database: database.write_bytes(database.read_bytes()[:5000]),
    ],
    ids=["gone", "empty", "other", "cut"],
)
def test_open_refuses_a_damaged_database(bank, kit, damage):
    kit.add_task(bank, "spam")
    damage(bank.path / "bank.db")
    with pytest.raises(DamagedError) as caught:
        Bank.open(bank.path).snapshot()
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(
    "statement",
    ["CREATE TRIGGER t AFTER INSERT ON tasks BEGIN DELETE FROM blobs; END", "CREATE VIEW v AS SELECT * FROM tasks"],
)
def test_a_database_with_triggers_or_views_is_refused(bank, statement):
    connection = sqlite3.connect(bank.path / "bank.db")
    connection.execute(statement)
    connection.close()
    with pytest.raises(DamagedError, match="trigger or view"):
        Bank.open(bank.path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE loot (x TEXT)",
        "CREATE INDEX odd ON tasks (lower(name))",
        "DROP INDEX uq_tasks_live_name",
        "DROP TABLE evaluations",
        "ALTER TABLE tasks ADD COLUMN colour TEXT",
        "ALTER TABLE tasks ADD COLUMN computed TEXT GENERATED ALWAYS AS (upper(name)) VIRTUAL",
        "ALTER TABLE operations RENAME COLUMN host TO ghost",
        "CREATE VIRTUAL TABLE loot USING fts5(x)",
    ],
)
def test_a_database_with_other_tables_is_refused(bank, statement):
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        connection.execute(statement)
    with pytest.raises(DamagedError, match="not the tables of lorabank"):
        Bank.open(bank.path)
    assert len(bank.verify(full=False)) == 1


@pytest.mark.parametrize("name", ["tasks", "uq_tasks_live_name"])
def test_a_name_of_the_schema_that_became_bytes_is_damage(bank, name):
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET name = CAST(name AS BLOB) WHERE name = ?", (name,))
    with pytest.raises(DamagedError):
        Bank.open(bank.path)
    assert len(bank.verify(full=True)) == 1


def test_a_file_format_that_sqlite_does_not_know_is_damage(bank):
    database = bank.path / "bank.db"
    content = bytearray(database.read_bytes())
    assert content[44:48] == b"\0\0\0\x04"  # the schema format number: https://sqlite.org/fileformat.html, 1.3.10
    content[47] = 5
    database.write_bytes(content)
    with pytest.raises(DamagedError, match="unsupported file format"):
        Bank.open(bank.path)
    assert len(bank.verify(full=True)) == 1


def test_statistics_of_sqlite_do_not_matter(bank, kit):
    kit.add_task(bank, "spam")
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("ANALYZE")
    assert Bank.open(bank.path).verify(full=True) == []


def test_reading_changes_nothing(bank, kit):
    kit.add_task(bank, "spam")
    before, stamps = kit.tree(bank.path), {path: path.stat().st_mtime_ns for path in bank.path.rglob("*")}
    reader = Bank.open(bank.path)
    reader.snapshot()
    reader.operations()
    reader.all_evaluations()
    reader.verify(full=True)
    reader.gc(dry_run=True, grace_hours=0)
    reader.remove("spam", dry_run=True)
    assert kit.tree(bank.path) == before
    assert {path: path.stat().st_mtime_ns for path in bank.path.rglob("*")} == stamps


def test_a_bank_can_be_copied_without_its_empty_folders(bank, kit, tmp_path):
    kit.add_task(bank, "spam")
    copy = tmp_path / "copy"
    shutil.copytree(bank.path, copy)
    for folder in ("staging", "work", "trash", "backups"):
        (copy / folder).rmdir()
    (copy / "lock").unlink()
    moved = Bank.open(copy)
    assert moved.verify(full=True) == []
    kit.add_task(moved, "products", weight=3.0)
    assert [task.name for task in moved.snapshot().tasks] == ["spam", "products"]
    assert [task.name for task in bank.snapshot().tasks] == ["spam"]


def test_reading_works_where_nothing_can_be_written(bank, kit):
    """SQLite cannot open a WAL database on a full disk or read-only medium; the file itself is complete then."""
    kit.add_task(bank, "spam")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        failed = 1
        try:
            with closing(sqlite3.connect(bank.path / "bank.db")) as connection:
                connection.execute("SELECT * FROM tasks")
        except sqlite3.OperationalError:
            failed = 0 if [task.name for task in bank.snapshot().tasks] == ["spam"] else 2
        finally:
            os._exit(failed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_folder_that_is_a_link_is_never_written_through(bank, kit, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (bank.path / "staging").rmdir()
    (bank.path / "staging").symlink_to(outside)
    with pytest.raises(DamagedError, match="is a link"):
        kit.add_task(bank, "spam")
    assert list(outside.iterdir()) == []


def test_reading_imports_neither_sqlalchemy_nor_numpy(bank):
    code = (
        "import sys; from lorabank.bank.bank import Bank; Bank.open(sys.argv[1]).snapshot();"
        "print(sorted({'sqlalchemy', 'alembic', 'numpy', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, str(bank.path)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "[]\n"
