"""The schema: made and changed by the migrations alone, from wherever the package is installed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.catalog import definitions, migrating, sqlite
from lorabank.bank.catalog.columns import TABLES
from lorabank.bank.catalog.migrating import alembic_config, script_location
from lorabank.bank.catalog.schema import metadata
from lorabank.bank.locks import bank_lock
from lorabank.bank.upkeep import upgrade
from lorabank.bank.upkeep.upgrade import upgrade_database
from lorabank.core.errors import BusyError, DamagedError, IncompatibleError, NotFoundError
from lorabank.core.machine.packages import UPDATE
from lorabank.core.records import BaseModelRecord
from tests.migrations.schemas import made_by_the_migrations, same_schema

BASE = BaseModelRecord("tiny", "local", None, "c" * 64, "f" * 64, "7" * 64, "float32", "SEQ_CLS", 32, 1000)

REVISIONS = definitions.REVISIONS
HEAD = REVISIONS[-1]
SCHEMAS = definitions.FOLDER
NEXT = '''"""A schema to come."""

import os
import signal

import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("tasks") as tasks:
        tasks.add_column(sa.Column("colour", sa.Text(), server_default="blue"))
        tasks.drop_constraint(op.f("ck_tasks_position"), type_="check")
    {end}
'''


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank.create(tmp_path / "bank", BASE)


@pytest.fixture
def next_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that a later version with one more revision is installed."""

    def install(end: str = "pass") -> None:
        folder = tmp_path / "later 100% release"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(script_location(), folder)
        monkeypatch.setattr(migrating, "script_location", lambda: folder)
        migration = folder / "versions" / "r9999_next.py"
        migration.write_text(NEXT.format(head=HEAD, end="pass"))
        schemas = Path(shutil.copytree(SCHEMAS, tmp_path / "schemas", dirs_exist_ok=True))
        monkeypatch.setattr(definitions, "FOLDER", schemas)
        (schemas / "next.sql").write_text(made_by_the_migrations("next"))
        migration.write_text(NEXT.format(head=HEAD, end=end))
        for module in (definitions, migrating, sqlite, upgrade):
            monkeypatch.setattr(module, "REVISIONS", (*REVISIONS, "next"))

    return install


def query(bank: Bank, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def test_there_is_one_head_and_the_code_knows_it():
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_config())
    assert scripts.get_heads() == [HEAD]
    assert tuple(reversed([script.revision for script in scripts.walk_revisions()])) == REVISIONS


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_schema_that_is_compared_is_what_the_migrations_make(revision):
    """`python -m tests.migrations.schemas` writes it."""
    kept = (SCHEMAS / f"{revision}.sql").read_text(encoding="utf-8")
    assert same_schema(kept, made_by_the_migrations(revision))
    assert not same_schema(kept.replace("position > 0", "position > 1"), made_by_the_migrations(revision))


def test_models_and_migrations_agree(bank):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{bank.path / 'bank.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_models_and_migrations_have_the_same_check_constraints(bank):
    """compare_metadata does not look at these."""
    from sqlalchemy import CheckConstraint, create_engine, inspect

    engine = create_engine(f"sqlite:///{bank.path / 'bank.db'}")
    for table in metadata.sorted_tables:
        found = {check["name"]: check["sqltext"] for check in inspect(engine).get_check_constraints(table.name)}
        expected = {c.name: str(c.sqltext) for c in table.constraints if isinstance(c, CheckConstraint)}
        assert found == expected
    engine.dispose()


def test_every_constraint_and_index_has_a_name(bank):
    """Without names, batch mode cannot change them later."""
    for name, statement in query(bank, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
        for line in str(statement).splitlines():
            if any(word in line for word in ("PRIMARY KEY (", "FOREIGN KEY(", "UNIQUE (", "CHECK (")):
                assert "CONSTRAINT" in line, f"{name}: {line}"


def test_the_row_digest_covers_every_column_that_never_changes():
    changing = {
        "tasks": {"state"},
        "compositions": {"state"},
        "operations": {"pid", "boot_id", "host", "process_start", "seen_at"},
    }
    for table in metadata.sorted_tables:
        covered = {name for name, column in TABLES[table.name].columns.items() if column.sealed}
        columns = {column.name for column in table.columns}
        assert columns == covered | {"row_digest"} | changing.get(table.name, set())
        assert covered.isdisjoint(changing.get(table.name, set()))


def test_the_migrations_run_from_an_installed_package():
    """Everything that Alembic needs lies inside the package, and nothing beside it."""
    import lorabank_migrations

    folder = Path(lorabank_migrations.__file__).parent
    assert script_location() == folder
    assert {"env.py", "script.py.mako", "versions"} <= {path.name for path in folder.iterdir()}


def test_an_upgrade_of_a_current_bank_does_nothing(bank):
    before = (bank.path / "bank.db").read_bytes()
    for dry_run in (True, False):
        result = upgrade_database(bank.path, dry_run=dry_run)
        assert (result.before, result.after, result.backup) == (HEAD, HEAD, None)
    assert (bank.path / "bank.db").read_bytes() == before
    assert list((bank.path / "backups").iterdir()) == []


def test_upgrade_needs_a_bank(tmp_path):
    with pytest.raises(NotFoundError):
        upgrade_database(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_older_bank_is_refused_then_upgraded_with_a_backup(bank, next_schema):
    next_schema()
    with pytest.raises(IncompatibleError, match=f"has schema {HEAD}, this lorabank needs next") as caught:
        Bank.open(bank.path)
    assert caught.value.commands == (("db", "upgrade"),)
    planned = upgrade_database(bank.path, dry_run=True)
    assert (planned.before, planned.after, planned.backup) == (HEAD, "next", None)
    assert query(bank, "SELECT * FROM alembic_version") == [(HEAD,)]

    result = upgrade_database(bank.path)
    assert (result.before, result.after) == (HEAD, "next")
    assert query(bank, "SELECT * FROM alembic_version") == [("next",)]
    assert "colour" in str(query(bank, "SELECT sql FROM sqlite_master WHERE name = 'tasks'"))
    assert Bank.open(bank.path).verify(full=True) == []
    with closing(sqlite3.connect(result.backup)) as copy:
        assert copy.execute("SELECT * FROM alembic_version").fetchall() == [(HEAD,)]
        assert copy.execute("SELECT name FROM base_model").fetchall() == [("tiny",)]
    assert upgrade_database(bank.path).backup is None


def test_a_newer_bank_is_refused_and_left_alone(bank):
    query(bank, "UPDATE alembic_version SET version_num = 'zzz9'")
    before = (bank.path / "bank.db").read_bytes()
    for attempt in (lambda: Bank.open(bank.path), bank.snapshot, lambda: upgrade_database(bank.path)):
        with pytest.raises(IncompatibleError, match="'zzz9', which this lorabank does not know") as caught:
            attempt()
        assert caught.value.exit_code == 5
        assert caught.value.hint == UPDATE
    with pytest.raises(IncompatibleError):
        bank.reserve("add-task", "spam", {})
    assert (bank.path / "bank.db").read_bytes() == before


@pytest.mark.parametrize("end", ["raise RuntimeError('out of ideas')", "op.execute('INSERT INTO nowhere VALUES (1)')"])
def test_a_failed_upgrade_leaves_the_old_schema_and_a_backup(bank, next_schema, end):
    before = query(bank, "SELECT name, sql FROM sqlite_master")
    next_schema(end)
    with pytest.raises(IncompatibleError, match=f"the upgrade from schema {HEAD} failed"):
        upgrade_database(bank.path)
    assert query(bank, "SELECT name, sql FROM sqlite_master") == before
    assert query(bank, "SELECT * FROM alembic_version") == [(HEAD,)]
    assert len(list((bank.path / "backups").iterdir())) == 1
    next_schema()
    upgrade_database(bank.path)  # nothing half-done is in the way
    assert query(bank, "SELECT * FROM alembic_version") == [("next",)]


def test_an_upgrade_that_breaks_references_is_rolled_back(bank, next_schema):
    next_schema("op.execute(\"INSERT INTO adapter_context VALUES (8, 1, 9, 'x', NULL)\")")
    with pytest.raises(DamagedError, match="2 rows refer"):
        upgrade_database(bank.path)
    assert query(bank, "SELECT * FROM alembic_version") == [(HEAD,)]
    assert query(bank, "SELECT count(*) FROM adapter_context") == [(0,)]


def test_a_killed_upgrade_leaves_the_old_schema(bank, next_schema):
    before = query(bank, "SELECT name, sql FROM sqlite_master")
    next_schema("os.kill(os.getpid(), signal.SIGKILL)")
    child = os.fork()
    if child == 0:
        try:
            upgrade_database(bank.path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert query(bank, "SELECT name, sql FROM sqlite_master") == before
    next_schema()
    assert upgrade_database(bank.path).after == "next"


def test_three_backups_are_kept(bank, next_schema):
    next_schema("raise RuntimeError")
    for _ in range(4):
        with pytest.raises(IncompatibleError):
            upgrade_database(bank.path)
    backups = sorted((bank.path / "backups").iterdir())
    assert len(backups) == 3
    next_schema()
    result = upgrade_database(bank.path)
    kept = sorted((bank.path / "backups").iterdir())
    assert len(kept) == 3
    assert str(kept[-1]) == result.backup
    assert kept[:2] == backups[-2:]


def test_a_backup_can_be_put_back(bank, next_schema, monkeypatch):
    with monkeypatch.context():
        next_schema()
        result = upgrade_database(bank.path)
        monkeypatch.undo()
    with pytest.raises(IncompatibleError):
        Bank.open(bank.path)
    (bank.path / "bank.db").unlink()
    shutil.copy(result.backup, bank.path / "bank.db")
    assert Bank.open(bank.path).verify(full=True) == []
    assert bank.snapshot().base.name == "tiny"


def test_nothing_is_upgraded_beside_a_running_operation(bank, next_schema, monkeypatch):
    bank.reserve("add-task", "spam", {})
    next_schema()
    with pytest.raises(BusyError, match="add-task 'spam'"):
        upgrade_database(bank.path)
    assert list((bank.path / "backups").iterdir()) == []


def test_nothing_is_upgraded_while_another_process_writes(bank, next_schema, monkeypatch):
    next_schema()
    monkeypatch.setattr(bank_lock.__wrapped__, "__kwdefaults__", {"timeout": 0.05})
    with bank_lock(bank.path / "lock", exclusive=False), pytest.raises(BusyError, match="holds the lock"):
        upgrade_database(bank.path)
    assert query(bank, "SELECT * FROM alembic_version") == [(HEAD,)]


def test_two_processes_upgrade_at_once(bank, next_schema):
    next_schema()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            result = 1
            try:
                result = 10 if upgrade_database(bank.path).backup else 20
            finally:
                os._exit(result)
        children.append(child)
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == [10, 20]
    assert query(bank, "SELECT * FROM alembic_version") == [("next",)]


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="this locale cannot write the path")
def test_paths_with_odd_characters(tmp_path):
    path = tmp_path / "a b % ? # ü"
    assert Bank.create(path, BASE).snapshot().base.name == "tiny"
    assert Bank.open(path).verify(full=True) == []
