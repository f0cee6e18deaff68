"""Banks as somebody might prepare them: what lies beside the database, its schema, rows whose digests fit."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.rows import sealed
from lorabank.bank.objects.canonical import canonical
from lorabank.core.errors import LorabankError

MAGIC = bytes.fromhex("d9d505f920a163d7")


def change(bank: Bank, *statements: str) -> None:
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def journal(database: Path, *, super_journal: Path | None = None, pages: tuple[int, ...] = ()) -> bytes:
    """A hot rollback journal, by https://sqlite.org/fileformat2.html#the_rollback_journal."""
    content = database.read_bytes()
    size = struct.unpack(">H", content[16:18])[0]
    data = (MAGIC + struct.pack(">5I", len(pages), 1, len(content) // size, 512, size)).ljust(512, b"\0")
    for number in pages:
        page = bytes(size)
        data += struct.pack(">I", number) + page + struct.pack(">I", 1 + sum(page[size - 200 : 0 : -200]))
    if super_journal is not None:
        name = os.fsencode(super_journal)
        data += struct.pack(">I", (1 << 30) // size + 1) + name + struct.pack(">2I", len(name), sum(name)) + MAGIC
    return data


def put_pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def put_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def put_folder(path: Path, _: Path) -> None:
    path.mkdir()


def put_second_name(path: Path, outside: Path) -> None:
    os.link(outside, path)


def put_socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))


PUT = {"pipe": put_pipe, "link": put_link, "folder": put_folder, "hard link": put_second_name, "socket": put_socket}


def remake(bank: Bank, table: str, old: str, new: str) -> None:
    """Change the text of a definition, as SQLite would keep it."""
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        assert sql.count(old) >= 1, sql
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql.replace(old, new, 1), table))


def endless_pages(bank: Bank) -> None:
    """Make the pages of a table name the same children again and again: endless rows in a small file."""
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (root,) = connection.execute(query, ("evaluations",)).fetchone()
        (leaf,) = connection.execute(query, ("tasks",)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray((bank.path / "bank.db").read_bytes())
    levels = []
    for _ in range(4):  # each level has four hundred times the same child
        levels.append(len(content) // size + 1)
        content += bytes(size)
    chain = [root, *levels, leaf]
    for page, child in itertools.pairwise(chain):
        cells = [struct.pack(">I", child) + b"\1"] * 400
        body = bytearray(size)
        body[0:12] = struct.pack(">BHHHBI", 5, 0, len(cells), size - 5 * len(cells), 0, child)
        for number, cell in enumerate(cells):
            at = size - 5 * (number + 1)
            body[at : at + 5] = cell
            body[12 + 2 * number : 14 + 2 * number] = struct.pack(">H", at)
        content[(page - 1) * size : page * size] = body
    content[28:32] = struct.pack(">I", len(content) // size)
    (bank.path / "bank.db").write_bytes(content)


ENDLESS_VIEW = (
    "DROP TABLE alembic_version",
    "CREATE VIEW alembic_version AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT i AS version_num FROM n WHERE i < 0",
)

DEFINITIONS = [
    ("compositions", "PRIMARY KEY (id)", "PRIMARY KEY (id) ON CONFLICT REPLACE"),
    ("compositions", "name TEXT NOT NULL", "name TEXT NOT NULL ON CONFLICT IGNORE"),
    ("compositions", "name TEXT NOT NULL", "name TEXT COLLATE NOCASE NOT NULL"),
    ("compositions", "name TEXT NOT NULL", "name TEXT"),
    ("compositions", "name TEXT NOT NULL", "name TEXT DEFAULT 'x' NOT NULL"),
    ("compositions", "name TEXT NOT NULL", "name BLOB NOT NULL"),
    ("compositions", "name TEXT NOT NULL", 'name TEXT "NOT" "NULL"'),
    ("compositions", "name TEXT NOT NULL", "name\u00a0TEXT NOT NULL"),
    ("compositions", "name TEXT NOT NULL", "name TEXT /* NOT NULL */"),
    ("compositions", "'ready', 'removed'", "'ready', 'removed', 'gone'"),
    ("compositions", "CHECK (state", "CHECK (1 OR state"),
    ("composition_members", "REFERENCES compositions (id)", "REFERENCES compositions (id) ON DELETE CASCADE"),
    ("composition_members", "REFERENCES compositions (id)", "REFERENCES tasks (position)"),
    ("operations", "UNIQUE (name)", "UNIQUE (name, id)"),
    ("tasks", "position > 0", "position > -1"),
    ("uq_tasks_live_name", "state != 'removed'", "state = 'removed'"),
    ("uq_tasks_live_name", "(name)", "(name COLLATE NOCASE)"),
    ("uq_tasks_live_name", " UNIQUE", ""),
    ("ix_adapters_digest", "(digest)", "(digest DESC)"),
]
"""A table or index, a piece of its text, and what stands there instead."""

STATEMENTS = [
    "CREATE TABLE sqlitexhidden (a)",
    "CREATE INDEX sqlitexindex ON tasks (name)",
    "CREATE INDEX odd ON tasks (length(name))",
    "CREATE UNIQUE INDEX one ON tasks (name, position)",
    "CREATE INDEX some ON tasks (name) WHERE state = 'ready'",
    "CREATE VIRTUAL TABLE loot USING fts5(x)",
    "CREATE VIRTUAL TABLE loot USING rtree(id, a, b)",
    "CREATE TABLE loot AS SELECT 1",
    "CREATE TRIGGER t BEFORE DELETE ON tasks BEGIN SELECT 1; END",
    "CREATE VIEW v AS SELECT 1",
]
"""What adds to the schema."""


def rewrite(bank: Bank, table: str, **changes: Any) -> None:
    """Change columns of a table's rows, with digests that fit."""
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        for row in connection.execute(f"SELECT rowid AS number, * FROM {table}").fetchall():
            new = dict(row)
            number = new.pop("number")
            new |= changes
            new.pop("row_digest")
            try:
                new = sealed(table, new)
            except LorabankError:
                new["row_digest"] = row["row_digest"]
            sets = ", ".join(f'"{column}" = ?' for column in new)
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(f"UPDATE {table} SET {sets} WHERE rowid = ?", (*new.values(), number))
            break


CONFIG = {"epochs": 5.0}


ROWS: list[tuple[str, dict[str, Any]]] = [
    ("tasks", {"position": 2**63 - 1}),
    ("tasks", {"position": -1}),
    ("tasks", {"position": 7}),
    ("tasks", {"task_type": "os:system"}),
    ("tasks", {"labels": '[1, null, {}]'}),
    ("tasks", {"labels": '["a", "a"]'}),
    ("tasks", {"labels": '"ab"'}),
    ("tasks", {"labels": "[" * 100_000}),
    ("tasks", {"labels": json.dumps([str(number) for number in range(10_001)])}),
    ("tasks", {"labels": b"\xff\xfe"}),
    ("tasks", {"name": b"\xff"}),
    ("tasks", {"state": "strange"}),
    ("tasks", {"statistics": "../../etc/passwd"}),
    ("adapters", {"id": 9}),
    ("adapters", {"r": 0}),
    ("adapters", {"r": 2**40}),
    ("adapters", {"lora_alpha": 9e999}),
    ("adapters", {"lora_alpha": "x"}),
    ("adapters", {"use_rslora": 7}),
    ("adapters", {"target_modules": '{"a": 1}'}),
    ("adapters", {"penalties": '{"a": "b"}'}),
    ("adapters", {"penalties": '{"a": NaN}'}),
    ("adapters", {"versions": '{"torch": 2}'}),
    ("adapters", {"config": canonical(CONFIG | {"max_length": "x"})}),
    ("adapters", {"config": canonical(CONFIG | {"max_length": -1})}),
    ("adapters", {"config": canonical(CONFIG | {"max_length": 2**70})}),
    ("adapters", {"config": canonical(CONFIG | {"clusters_per_task": 0})}),
    ("adapters", {"config": canonical(CONFIG | {"scoring": "os.system"})}),
    ("adapters", {"config": "[]"}),
    ("adapters", {"metrics": canonical({"overlap": [1]})}),
    ("adapters", {"metrics": canonical({"continued_from": 5})}),
    ("adapters", {"steps": 1.5}),
    ("adapters", {"digest": "A" * 64}),
    ("adapter_files", {"name": "../thesis"}),
    ("adapter_files", {"name": ""}),
    ("adapter_files", {"bytes": "many"}),
    ("datasets", {"rows": -1}),
    ("datasets", {"columns": "[[]]"}),
    ("datasets", {"split": "secret"}),
    ("compositions", {"parameters": "[]"}),
    ("compositions", {"parameters": '{"a": 1e999'}),
    ("composition_objects", {"blob": "/etc/passwd"}),
    ("adapter_objects", {"role": b"\xff"}),
    ("base_model", {"hidden_size": "wide"}),
    ("base_model", {"task_type": "auto"}),
    ("base_model", {"fingerprint": ""}),
    ("tasks", {"note": b"\xff"}),
    ("tasks", {"note": ""}),
    ("tasks", {"note": "x" * 2001}),
    ("tasks", {"tags": "a,a"}),
    ("tasks", {"tags": "a,,b"}),
    ("tasks", {"tags": "\x1b[2J"}),
    ("tasks", {"tags": ",".join(f"t{number}" for number in range(33))}),
    ("tasks", {"first_name": b"\xff"}),
    ("tasks", {"replaces": "x"}),
    ("tasks", {"replaces": 0}),
    ("tasks", {"removed_at": b"\xff"}),
    ("compositions", {"note": b"\xff"}),
    ("compositions", {"tags": b"a"}),
    ("composition_members", {"known_as": b"\xff"}),
    ("datasets", {"row_digests": "../../etc/passwd"}),
    ("evaluations", {"value": "x"}),
    ("evaluations", {"stage": -1}),
    ("evaluations", {"detail": canonical({"routed": {"a": "b"}})}),
    ("evaluations", {"settings": "7"}),
]  # fmt: skip
"""A table and columns that no record can be made of."""


EVENTS: list[dict[str, Any]] = [
    {"id": 99},
    {"kind": b"\xff"},
    {"name": b"\xff"},
    {"detail": "[]"},
    {"detail": "[" * 100_000},
    {"detail": '{"tasks_added": "ab"}'},
    {"detail": '{"tasks_added": [1, 1]}'},
    {"detail": '{"tasks_removed": [-1]}'},
    {"detail": '{"compositions_added": [null]}'},
    {"detail": '{"of": "bank", "row": 1}'},
    {"detail": '{"of": "tasks", "row": "x"}'},
    {"detail": '{"before": {"name": 7}}'},
    {"detail": '{"after": {"note": "\\ud800"}}'},
    {"undoes": "x"},
    {"created_at": "yesterday"},
    {"version": b"\xff"},
]
"""Columns that no event can be made of."""

HISTORIES: list[dict[str, Any]] = [
    {"tasks_added": [77]},
    {"tasks_removed": [1]},
    {"compositions_added": [77]},
    {"compositions_removed": [1]},
    {"of": "tasks", "row": 77, "before": {"name": "b"}, "after": {"name": "a"}},
    {"of": "tasks", "row": 1, "before": {"name": "b"}, "after": {"name": "other"}},
    {"of": "tasks", "row": 1, "before": {"state": "removed"}, "after": {"state": "ready"}},
    {"of": "tasks", "row": 1, "before": {"row_digest": "0"}, "after": {"row_digest": "1"}},
    {"of": "tasks", "row": 1, "before": {}, "after": {"name": "a"}},
    {"of": "tasks", "row": 1, "before": {"name": None}, "after": {"name": "a"}},
    {"of": "tasks", "row": 1, "before": {"note": ""}, "after": {"note": None}},
    {"of": "tasks", "row": 1, "before": {"tags": ",,"}, "after": {"tags": None}},
    {"of": "compositions", "row": 1, "before": {"first_name": "b"}, "after": {"first_name": "a"}},
]
"""What the last event says that no bank of two tasks and a composition has gone through."""
