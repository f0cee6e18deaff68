"""A bank from somebody else: what lies beside its database, its schema, and what reading it may cost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.catalog import connections
from lorabank.bank.catalog.connections import connect_to_read, connect_to_write
from lorabank.bank.catalog.definitions import REVISIONS, defined, same
from lorabank.bank.catalog.judging import LONGEST, judge_database
from lorabank.bank.failures import database_error
from lorabank.bank.objects import filesystem
from lorabank.core.errors import ConfigError, DamagedError
from tests.unit.bank.prepared import (
    DEFINITIONS,
    ENDLESS_VIEW,
    MAGIC,
    PUT,
    ROWS,
    STATEMENTS,
    change,
    endless_pages,
    journal,
    remake,
    rewrite,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def filled(bank, kit) -> Bank:
    first = kit.add_task(bank, "a")
    kit.add_task(bank, "b", weight=2.0, context=(first.adapter,))
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    bank.add_evaluations([kit.evaluation()])
    return bank


OPENING: dict[str, Callable[[Bank, Path], object]] = {
    "open": lambda bank, _: Bank.open(bank.path),
    "snapshot": lambda bank, _: bank.snapshot(),
    "verify": lambda bank, _: raising(bank.verify(full=True)),
    "repair": lambda bank, _: api.repair(bank.path),
    "backup": lambda bank, _: api.backup(bank.path),
    "copy": lambda bank, folder: api.backup(bank.path, folder / "copy"),
    "restore": lambda bank, folder: api.restore(kept(bank, folder), bank.path / "bank.db"),
    "restore a folder": lambda bank, folder: api.restore(folder / "new", bank.path),
    "restore a folder, dry": lambda bank, folder: api.restore(folder / "new", bank.path, dry_run=True),
    "gc": lambda bank, _: bank.gc(dry_run=True),
    "upgrade": lambda bank, _: api.upgrade(bank.path),
    "upgrade, dry": lambda bank, _: api.upgrade(bank.path, dry_run=True),
    "reserve": lambda bank, _: bank.reserve("compose", "new", {}),
    "evaluations": lambda bank, _: bank.add_evaluations(bank.all_evaluations()),
    "create": lambda bank, _: ((bank.path / "bank.json").unlink(), Bank.create(bank.path, bank_base())),
}


def bank_base() -> Any:
    from tests.unit.bank.conftest import Kit

    return Kit.base


def kept(bank: Bank, folder: Path) -> Path:
    """The bank without what was put beside its database."""
    target = folder / "sound"
    target.mkdir()
    for name in ("bank.json", "adapters", "blobs"):
        source = bank.path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
    return target


def raising(findings: list[Any]) -> None:
    if findings:
        raise DamagedError(findings[0].message)


@pytest.mark.parametrize("beside", ["bank.db-journal", "bank.db-wal", "bank.db-shm"])
@pytest.mark.parametrize("kind", PUT)
def test_something_else_beside_the_database_is_refused(filled, folder, monkeypatch, beside, kind):
    monkeypatch.chdir(folder)
    outside = folder / "thesis"
    outside.write_bytes(b"years of work")
    PUT[kind](filled.path / beside, outside)
    for name in ("open", "verify", "backup", "repair"):
        with pytest.raises(DamagedError, match=beside):
            OPENING[name](filled, folder)
    assert outside.read_bytes() == b"years of work"


@pytest.mark.parametrize("action", OPENING)
@pytest.mark.parametrize("prepared", ["journal", "journal beside rollback mode", "pipe", "view"])
def test_every_way_to_open_a_bank_refuses_it(filled, folder, prepared, action):
    database, outside = filled.path / "bank.db", folder / "thesis"
    outside.write_bytes(b"years of work")
    if prepared.startswith("journal"):
        if "rollback" in prepared:
            change(filled, "PRAGMA journal_mode = DELETE")
        (filled.path / "bank.db-journal").write_bytes(journal(database, super_journal=outside))
    elif prepared == "pipe":
        os.mkfifo(filled.path / "bank.db-journal")
    else:
        change(filled, *ENDLESS_VIEW)
    before = database.read_bytes()
    with pytest.raises(DamagedError) as caught:
        OPENING[action](filled, folder)
    assert caught.value.exit_code == 8
    assert outside.read_bytes() == b"years of work"
    assert database.read_bytes() == before


def test_a_bank_of_another_user_can_be_read_but_not_what_a_third_one_put_into_it(filled, monkeypatch):
    """The looks of it: a test may not run as root, and cannot give files away."""
    owner, found = {"bank.db": 4001}, os.lstat

    def lstat(path: Any, **options: Any) -> os.stat_result:
        status = found(path, **options)
        return os.stat_result((*status[:4], owner.get(Path(path).name, status.st_uid), *status[5:10]))

    monkeypatch.setattr(os, "lstat", lstat)
    assert judge_database(filled.path / "bank.db") > 0
    (filled.path / "bank.db-journal").touch()
    owner["bank.db-journal"] = 4001
    assert judge_database(filled.path / "bank.db") > 0
    owner["bank.db-journal"] = 4002
    with pytest.raises(DamagedError, match=r"bank\.db-journal: it belongs to the user 4002, the database to 4001"):
        judge_database(filled.path / "bank.db")


def test_a_hot_journal_beside_a_database_in_wal_mode_is_not_played_back(filled):
    """A local bank's own transactions leave none: SQLite would write its pages into the database."""
    database = filled.path / "bank.db"
    before = database.read_bytes()
    (filled.path / "bank.db-journal").write_bytes(journal(database, pages=(2,)))
    with pytest.raises(DamagedError, match="a transaction that lorabank did not make"):
        filled.snapshot()
    assert database.read_bytes() == before


def test_a_crash_on_a_network_file_system_is_undone(folder, kit, monkeypatch):
    """The journal of our own transaction, as SIGKILL leaves it between the pages and the commit."""
    table = folder / "mountinfo"
    table.write_text("22 1 0:20 / / rw - nfs4 source rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", table)
    bank = Bank.create(folder / "bank", kit.base)
    kit.add_task(bank, "a")
    child = os.fork()
    if child == 0:
        try:
            connection = connect_to_write(bank.path / "bank.db", foreign_keys=False)
            connection.execute("PRAGMA cache_spill = 1")
            connection.execute("PRAGMA cache_size = 1")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE tasks SET name = 'half'")
            for number in range(50):
                row = (f"k{number}", "x" * 4000, 0, "a", "accuracy", 0.5, 1, 0.0, 1.0, "given", "{}", "{}", "", "")
                connection.execute(f"INSERT INTO evaluations VALUES (?{', ?' * 13})", row)
                connection.execute("UPDATE evaluations SET subject = ?", ("y" * 4000,))
            os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert (bank.path / "bank.db-journal").stat().st_size > 1000
    assert [task.name for task in bank.snapshot().tasks] == ["a"]
    assert bank.verify(full=True) == []
    assert not (bank.path / "bank.db-journal").exists()


def test_a_backup_that_was_named_by_a_link_is_restored(filled, folder):
    (folder / "latest.db").symlink_to(api.backup(filled.path).path)
    assert api.restore(filled.path, folder / "latest.db").gone == ()
    (filled.path / "backups" / "planted.db").symlink_to(folder / "latest.db")
    with pytest.raises(DamagedError, match="a link, which is not followed"):
        api.restore(filled.path, "planted.db")


def test_a_manifest_without_an_end_is_refused(filled):
    with (filled.path / "bank.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(DamagedError, match="over 262144 bytes"):
        Bank.open(filled.path)


@pytest.mark.parametrize("left", [b"", MAGIC[:5], bytes(600)], ids=["empty", "cut", "zeroed"])
def test_what_is_left_of_a_journal_without_content_is_no_obstacle(filled, left):
    (filled.path / "bank.db-journal").write_bytes(left)
    assert len(filled.snapshot().tasks) == 2


def test_the_journal_of_a_change_of_mode_is_played_back(filled):
    """SQLite changes page 1 alone then, in a database that says WAL before or after it."""
    database = filled.path / "bank.db"
    data = journal(database, pages=(1,))
    size = struct.unpack(">H", database.read_bytes()[16:18])[0]
    page = database.read_bytes()[:size]
    total = 1 + sum(page[size - 200 : 0 : -200])
    data = data[:512] + struct.pack(">I", 1) + page + struct.pack(">I", total)
    (filled.path / "bank.db-journal").write_bytes(data)
    assert len(filled.snapshot().tasks) == 2
    assert not (filled.path / "bank.db-journal").exists()


# ------------------------------------------------------------------------------------------------------ the schema


@pytest.mark.parametrize(
    ("table", "old", "new"),
    DEFINITIONS,
)
def test_a_definition_that_says_something_else_is_refused(filled, folder, table, old, new):
    remake(filled, table, old, new)
    for action in ("open", "verify", "backup", "copy", "upgrade", "reserve"):
        with pytest.raises(DamagedError, match="not the tables of lorabank"):
            OPENING[action](filled, folder)


def test_two_tables_in_one_page_are_refused(filled, folder):
    roots = "SELECT rootpage FROM sqlite_master WHERE name = 'tasks'"
    place = f"UPDATE sqlite_master SET rootpage = ({roots}) WHERE name = 'compositions'"
    change(filled, "PRAGMA writable_schema = ON", place)
    for action in ("open", "verify", "backup", "copy", "upgrade", "reserve"):
        with pytest.raises(DamagedError, match="kept in the same page"):
            OPENING[action](filled, folder)


@pytest.mark.parametrize(
    "statement",
    STATEMENTS,
)
def test_what_does_not_belong_into_the_schema_is_refused(filled, folder, statement):
    change(filled, statement)
    for action in ("open", "verify", "backup", "copy", "upgrade", "reserve"):
        with pytest.raises(DamagedError, match="of lorabank"):
            OPENING[action](filled, folder)


def test_a_computed_column_of_the_statistics_is_refused_before_it_is_evaluated(filled):
    change(
        filled,
        "ANALYZE",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = 'CREATE TABLE sqlite_stat1(tbl,idx,stat AS (hex(zeroblob(900000000))))' "
        "WHERE name = 'sqlite_stat1'",
    )
    with pytest.raises(DamagedError, match="not the tables of lorabank"):
        Bank.open(filled.path)


@pytest.mark.parametrize("revision", REVISIONS)
def test_only_blanks_quotes_and_the_order_of_constraints_may_differ(revision):
    for definition in defined(revision).values():
        start, found, rest = definition.sql.partition("(")
        if definition.kind == "table":
            inner = rest.rstrip().removesuffix(")")
            first, *others = [line.strip(" ,\t") for line in inner.strip().splitlines()]
            again = f"{start}{found}{first},{' , '.join(reversed(others))}\n)"
            assert same(again, definition.sql)
        for index, letter in enumerate(definition.sql):
            if letter.isalnum():
                assert not same(definition.sql[:index] + "~" + definition.sql[index + 1 :], definition.sql)
    assert not same(None, "CREATE TABLE a (b)")


# ---------------------------------------------------------------------------------------------- what reading costs


def test_pages_that_refer_to_each_other_end_in_an_error(filled):
    endless_pages(filled)
    connection = connect_to_read(filled.path / "bank.db")
    with closing(connection), pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("SELECT sum(length(detail)) FROM evaluations").fetchall()
    known = database_error(caught.value, filled.path, None)
    assert isinstance(known, DamagedError)
    assert "more steps than a database of this size" in known.message


def test_a_bank_that_is_full_is_read_well_below_the_limit(filled, kit, monkeypatch):
    """A twentieth of the steps is enough for the longest check."""
    filled.add_evaluations([kit.evaluation(f"key {number}") for number in range(3000)])
    monkeypatch.setattr(connections, "_STEPS", connections._STEPS // 20)
    monkeypatch.setattr(connections, "_STEPS_PER_BYTE", connections._STEPS_PER_BYTE / 4)
    assert filled.verify(full=True) == []


def test_the_longest_path_that_sqlite_opens(tmp_path, kit):
    def place(length: int) -> Path:
        path = str(tmp_path.resolve())
        while length - len(path) > 120:
            path += "/" + "d" * 80
        return Path(path + "/" + "e" * (length - len(path) - 1 - len("/bank.db")))

    longest = LONGEST - len(f"/staging/{'0' * 32}")  # copies of the database are made in there
    bank = Bank.create(place(longest), kit.base)
    assert bank.verify(full=True) == []
    assert api.backup(bank.path).tasks == 0
    for act in (lambda path: Bank.create(path, kit.base), lambda path: api.backup(bank.path, path)):
        with pytest.raises(ConfigError, match=f"{LONGEST + 1} bytes, and SQLite opens at most {LONGEST}"):
            act(place(longest + 1))
    moved = Path(shutil.copytree(bank.path, place(LONGEST)))
    assert Bank.open(moved).verify(full=True) == []
    too_long = Path(shutil.copytree(bank.path, place(LONGEST + 1)))
    for act in (Bank.open, api.backup):
        with pytest.raises(ConfigError, match="SQLite opens at most"):
            act(too_long)


# --------------------------------------------------------------------------------------- rows whose digests fit


@pytest.mark.parametrize(
    ("table", "changes"),
    ROWS,
)
def test_a_row_that_is_no_record_is_refused_though_its_digest_fits(filled, table, changes):
    rewrite(filled, table, **changes)
    with pytest.raises(DamagedError) as caught:
        filled.contents()
    assert "bank.db" in caught.value.message
    assert "\n" not in caught.value.message
    assert filled.verify(full=False) != []


@pytest.mark.parametrize(
    "changes",
    [{"started_at": "soon"}, {"started_at": "2030-01-01"}, {"pid": -5}, {"id": "../x"}, {"config": "[]"}]
    + [
        {"config": config}
        for config in (
            '{"config": 1}',
            '{"train": 1}',
            '{"past": []}',
            '{"past": {"earlier": [1]}}',
            '{"past": {"tasks": [[]]}}',
            '{"past": {"objects": {"inputs": 1}}}',
        )
    ],
)
def test_a_reservation_that_is_none_is_refused(filled, changes):
    filled.reserve("add-task", "new", {})
    rewrite(filled, "operations", **changes)
    for look in (filled.operations, lambda: filled.reserve("compose", "other", {})):
        with pytest.raises(DamagedError, match="of operations"):
            look()


def test_a_composition_of_what_is_no_task_is_refused(filled):
    change(filled, "UPDATE tasks SET state = 'removed' WHERE name = 'b'")
    with pytest.raises(DamagedError, match="composition 'ab' has no members, a repeated member"):
        filled.snapshot()


def test_an_adapter_beneath_an_earlier_one_is_refused(filled):
    change(filled, "PRAGMA foreign_keys = OFF", "UPDATE adapter_context SET member = 2")
    with pytest.raises(DamagedError, match="task 2 was not trained on top of task 2"):
        filled.snapshot()
