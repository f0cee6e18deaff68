"""A bank of schema 0001, with every kind of record: upgraded, it has lost nothing.

`bank_0001` was written by the version whose schema that was; `bank.sql` is the dump of its database.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from lorabank_cli.main import main

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.catalog import migrating, sqlite
from lorabank.bank.catalog.definitions import REVISIONS
from lorabank.bank.upkeep import upgrade
from lorabank.bank.upkeep.upgrade import upgrade_database
from lorabank.core.config import EvalConfig, TrainConfig
from lorabank.core.errors import DamagedError, IncompatibleError
from lorabank.core.machine.packages import UPDATE
from lorabank.core.observer import SilentObserver
from lorabank.core.records import DatasetRecord, TaskRecord
from lorabank.sequences.bank import compose_and_measure, learn, learnt_tasks

OLD_TABLES = {
    "adapter_context": 2, "adapter_files": 8, "adapters": 4, "bank": 1, "base_model": 1, "blobs": 14,
    "composition_members": 5, "composition_objects": 2, "compositions": 3, "datasets": 12, "evaluations": 2,
    "operations": 1, "tasks": 4,
}  # fmt: skip
"""Rows in each table of the old bank."""

LATER = {
    "operations": ("seen_at",), "tasks": ("note", "tags", "first_name", "replaces"), "datasets": ("row_digests",),
    "compositions": ("note", "tags"), "composition_members": ("known_as",), "adapter_context": ("part",),
}  # fmt: skip
"""Columns that later schemas added to the old tables."""

HEAD = REVISIONS[-1]

WRITES = ("BEGIN IMMEDIATE", "CREATE", "INSERT", "UPDATE", "DELETE", "DROP", "ALTER", "COMMIT")

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The old bank as a copying tool leaves it: without its empty folders."""
    folder = Path(shutil.copytree(Path(__file__).parent / "bank_0001", tmp_path / "bank"))
    dump = folder / "bank.sql"
    with closing(sqlite3.connect(folder / "bank.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {0x4C6F5242}")
        connection.executescript(dump.read_text(encoding="utf-8"))
    dump.unlink()
    return folder


def query(file: Path, statement: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


def schema(file: Path) -> dict[str, list[str]]:
    """The lines that define each table and index; a table that is made again may order its constraints otherwise."""
    found = query(file, "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL")
    return {row["name"]: sorted(line.strip(" \t,") for line in row["sql"].splitlines()) for row in found}


def all_rows(file: Path) -> Rows:
    """Every row of the old tables, by column, with SQLite's own number of it (the order of the evaluations)."""
    return {table: query(file, f"SELECT rowid AS number, * FROM {table} ORDER BY rowid") for table in OLD_TABLES}


def upgrade_to(revision: str, upgrade: Callable[[Any, str], None], config: Any, _: str) -> None:
    """Alembic's upgrade, as a version of lorabank did it that knew no later revision."""
    upgrade(config, revision)


def with_new_columns(rows: Rows) -> Rows:
    """The rows as they are in the present schema, when nothing was ever written to them."""
    return {table: [row | dict.fromkeys(LATER.get(table, ())) for row in found] for table, found in rows.items()}


def other_files(folder: Path) -> dict[str, bytes]:
    paths = (path for name in ("adapters", "blobs") for path in (folder / name).rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def test_the_old_bank_holds_every_kind_of_record(path):
    rows = all_rows(path / "bank.db")
    assert {table: len(found) for table, found in rows.items()} == OLD_TABLES
    tables = query(path / "bank.db", "SELECT name FROM sqlite_master WHERE type = 'table'")
    assert {row["name"] for row in tables} == {*OLD_TABLES, "alembic_version"}
    assert {row["state"] for row in rows["tasks"]} == {row["state"] for row in rows["compositions"]}
    assert {row["split"] for row in rows["datasets"]} == {"train", "eval", "calibration"}
    for table in OLD_TABLES.keys() - {"datasets"}:  # and none of their columns is always empty
        for column in rows[table][0]:
            assert any(row[column] is not None for row in rows[table]), f"{table}.{column}"


def test_it_is_refused_and_left_alone(path):
    before = (path / "bank.db").read_bytes()
    with pytest.raises(IncompatibleError, match=f"has schema 0001, this lorabank needs {HEAD}") as caught:
        Bank.open(path)
    assert caught.value.commands == (("db", "upgrade"),)
    assert upgrade_database(path, dry_run=True).before == "0001"
    assert (path / "bank.db").read_bytes() == before


def test_an_upgrade_keeps_every_row_and_file(path):
    before, files = all_rows(path / "bank.db"), other_files(path)
    result = upgrade_database(path)
    assert (result.before, result.after) == ("0001", HEAD)
    assert all_rows(path / "bank.db") == with_new_columns(before)
    assert other_files(path) == files
    assert query(path / "bank.db", "SELECT * FROM adapter_objects") == []
    backup = Path(result.backup)
    assert all_rows(backup) == before
    assert query(backup, "SELECT * FROM alembic_version") == [{"version_num": "0001"}]


def test_an_upgraded_bank_is_read_as_it_was_written(path):
    """Row digests, files and what the records say."""
    upgrade_database(path)
    bank = Bank.open(path)
    assert bank.verify(full=True) == []
    snapshot, evaluations = bank.contents()
    assert (snapshot.base.name, snapshot.base.revision, snapshot.base.quantisation) == ("tiny", "a1b2c3", "int8")
    assert [(task.name, task.position) for task in snapshot.tasks] == [("sentiment", 1), ("spam", 2), ("topic", 4)]
    assert [task.name for task in snapshot.removed_tasks] == ["gone"]
    assert snapshot.task("topic").prompt_template == "{text}\nTopic:"
    assert snapshot.adapter_of("spam").context == (snapshot.adapter_of("sentiment").digest,)
    assert all(adapter.objects == {} for adapter in snapshot.by_position.values())
    assert [(data.split, data.rows) for data in snapshot.datasets] == 3 * [
        ("train", 400),
        ("eval", 80),
        ("calibration", 16),
    ]
    assert bank.read_blob(snapshot.dataset("spam", "calibration").blob) == b"PAR1 sample of spam"
    assert [composition.name for composition in snapshot.compositions] == ["mix"]
    assert snapshot.composition("mix").objects.keys() == {"selector"}
    assert [(cell.key, cell.value) for cell in evaluations] == [("k1", 0.875), ("k2", 0.5)]
    assert [(operation.name, operation.config) for operation in bank.operations()] == [("half", {"epochs": 3})]


@pytest.mark.parametrize("by_way_of", REVISIONS[:-1])
def test_an_upgraded_bank_has_the_schema_of_a_new_one(path, tmp_path, by_way_of, monkeypatch):
    if by_way_of != "0001":
        with monkeypatch.context() as patch:
            for module in (migrating, upgrade):
                patch.setattr(module, "REVISIONS", REVISIONS[: REVISIONS.index(by_way_of) + 1])
            patch.setattr(upgrade, "log_event", lambda *_: None)  # that version knew no history
            patch.setattr("alembic.command.upgrade", partial(upgrade_to, by_way_of, command.upgrade))
            upgrade_database(path)
        assert query(path / "bank.db", "SELECT * FROM alembic_version") == [{"version_num": by_way_of}]
    assert upgrade_database(path).before == by_way_of
    new = Bank.create(tmp_path / "new", Bank.open(path).snapshot().base)
    assert schema(path / "bank.db") == schema(new.path / "bank.db")
    assert (
        "CONSTRAINT fk_datasets_blob_blobs FOREIGN KEY(blob) REFERENCES blobs (digest)"
        in schema(path / "bank.db")["datasets"]
    )


def test_an_upgraded_bank_takes_what_is_new_and_keeps_its_references(path):
    upgrade_database(path)
    bank = Bank.open(path)
    with bank.reserve("add-task", "fresh", {}) as operation:
        inputs, rows = operation.stage_blob(b"PAR1 inputs"), operation.stage_blob(b"PAR1 replay")
        digest = operation.stage_adapter({"adapter_config.json": b"{}"})
        record = bank.snapshot().adapter_of("spam")._replace(digest=digest, task="fresh", objects={"inputs": inputs})
        replay = DatasetRecord("fresh", "replay", 8, ("text", "label"), "1" * 64, "train.jsonl", blob=rows)
        operation.commit_task(TaskRecord("fresh", 0, "SEQ_CLS", ("no", "yes"), "training"), record, [replay])
    snapshot = bank.snapshot()
    assert snapshot.task("fresh").position == 5
    assert snapshot.adapter_of("fresh").objects == {"inputs": inputs}
    assert snapshot.dataset("fresh", "replay") == replay
    assert bank.verify(full=True) == []
    with closing(sqlite3.connect(path / "bank.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for change in (
            "UPDATE datasets SET task = 99 WHERE id = 1",
            "UPDATE datasets SET blob = 'x' WHERE id = 1",
            "UPDATE adapter_objects SET adapter = 99",
            "UPDATE adapter_objects SET blob = 'x'",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
                connection.execute(change)
        with pytest.raises(sqlite3.IntegrityError, match="ck_datasets_split"):
            connection.execute("UPDATE datasets SET split = 'test' WHERE id = 1")
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute("UPDATE datasets SET split = 'train' WHERE id = 2")


def test_a_version_that_knows_the_first_schema_alone_says_too_new(path, monkeypatch):
    upgrade_database(path)
    for module in (migrating, sqlite, upgrade):
        monkeypatch.setattr(module, "REVISIONS", ("0001",))
    for attempt in (lambda: Bank.open(path), lambda: upgrade_database(path)):
        with pytest.raises(IncompatibleError, match=f"'{HEAD}', which this lorabank does not know") as caught:
            attempt()
        assert caught.value.hint == UPDATE


def killed(action: Callable[[], object], step: int) -> bool:
    """Run in a child that is killed before its ``step``-th statement that writes; whether it got that far."""
    child = os.fork()
    if child == 0:
        try:
            left, connect = [step], sqlite3.connect

            def count(statement: str) -> None:
                left[0] -= statement.lstrip().startswith(WRITES)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            def traced(*args: Any, **options: Any) -> sqlite3.Connection:
                connection = connect(*args, **options)
                connection.set_trace_callback(count)
                return connection

            sqlite3.connect = traced
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child failed at step {step}"
    return status != 0


def test_killed_at_every_statement_the_upgrade_leaves_the_old_bank(path):
    before, old = all_rows(path / "bank.db"), schema(path / "bank.db")
    step = 1
    while killed(lambda: upgrade_database(path), step):
        assert schema(path / "bank.db") == old
        assert all_rows(path / "bank.db") == before
        step += 1
    assert step > 9  # BEGIN, the new table, datasets made again (4), the new column, two revisions, COMMIT
    assert Bank.open(path).verify(full=True) == []
    assert all_rows(path / "bank.db") == with_new_columns(before)


def test_killed_twenty_times_at_random_the_upgrade_leaves_one_schema_or_the_other(path):
    before = all_rows(path / "bank.db")
    generator = random.Random(14)
    ended = set()
    for number in range(20):
        again = Path(shutil.copytree(path, path.parent / f"killed-{number}"))
        child = os.fork()
        if child == 0:
            try:
                upgrade_database(again)
            finally:
                os._exit(0)
        time.sleep(generator.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (revision,) = query(again / "bank.db", "SELECT version_num FROM alembic_version")
        ended.add(revision["version_num"])
        assert all_rows(again / "bank.db") == (
            before if revision["version_num"] == "0001" else with_new_columns(before)
        )
        upgrade_database(again)
        assert Bank.open(again).verify(full=True) == []
        assert all_rows(again / "bank.db") == with_new_columns(before)
        shutil.rmtree(again)
    assert ended <= {"0001", HEAD}


def test_the_backup_of_an_upgrade_is_restored_with_every_row(path):
    before, old, files = all_rows(path / "bank.db"), schema(path / "bank.db"), other_files(path)
    backup = upgrade_database(path).backup
    done = api.restore(path, backup)
    assert (done.back, done.gone) == ((), ())
    assert schema(path / "bank.db") == old
    assert all_rows(path / "bank.db") == before
    assert other_files(path) == files
    with pytest.raises(IncompatibleError, match="has schema 0001"):
        Bank.open(path)
    upgrade_database(path)
    assert Bank.open(path).verify(full=True) == []
    assert all_rows(path / "bank.db") == with_new_columns(before)


def test_a_restore_to_the_old_schema_says_that_an_upgrade_comes_next(path, capsys):
    backup = upgrade_database(path).backup
    assert main(["-b", str(path), "restore", backup, "--yes"]) == 0
    proposed = capsys.readouterr().out.partition("next:\n  lorabank ")[2].splitlines()
    assert proposed == [f"-b {path} db upgrade"]
    assert main(shlex.split(proposed[0])) == 0
    present = api.backup(path).path
    capsys.readouterr()
    assert main(["-b", str(path), "restore", present, "--yes"]) == 0
    shown = capsys.readouterr().out
    assert present in shown
    assert "db upgrade" not in shown


@pytest.mark.parametrize(
    "use",
    [
        learnt_tasks,
        lambda bank: learn(bank, "t", TrainConfig(data="rows.jsonl"), None, SilentObserver()),
        lambda bank: compose_and_measure(bank, (), EvalConfig(), SilentObserver()),
    ],
)
def test_a_sequence_names_the_old_bank_in_what_it_proposes(path, use):
    """The call named a sequence, so the command alone would be about another bank."""
    with pytest.raises(IncompatibleError, match="has schema 0001") as caught:
        use(path)
    assert caught.value.commands == (("-b", str(path), "db", "upgrade"),)


def test_an_old_bank_with_a_trigger_is_not_upgraded(path):
    with closing(sqlite3.connect(path / "bank.db", isolation_level=None)) as connection:
        connection.execute("CREATE TRIGGER t AFTER INSERT ON datasets BEGIN DELETE FROM tasks; END")
    before = (path / "bank.db").read_bytes()
    with pytest.raises(DamagedError, match="trigger or view"):
        upgrade_database(path)
    assert (path / "bank.db").read_bytes() == before
