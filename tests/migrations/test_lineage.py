"""A bank of schema 0004, whose adapters have a row for each one that they were trained on top of.

`bank_0004` was written by the version whose schema that was; `bank.sql` is the dump of its database, without the files
that it speaks of. Task 2 was removed after task 5 had been learnt, task 4 was learnt alone, and task 8 on top of tasks
3 and 1, in this order.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.catalog.rows import is_sealed
from lorabank.bank.upkeep.upgrade import upgrade_database
from lorabank.core.errors import DamagedError

CONTEXT = {1: [], 2: [1], 3: [1, 2], 4: [], 5: [1, 2, 3, 4], 6: [1, 3, 4, 5], 7: [1, 3, 4, 5, 6], 8: [3, 1]}
"""Positions of the tasks that each was trained on top of."""

OLD_ROWS, NEW_ROWS = 18, 1 + 1 + 2 + 2 + 1 + 2
"""In the new schema: 2 and 3 a row each; 5 and 6 that of an earlier one and one more; 7 a row; 8 has another order."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(Path(__file__).parent / "bank_0004", tmp_path / "bank"))
    with closing(sqlite3.connect(folder / "bank.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {0x4C6F5242}")
        connection.executescript((folder / "bank.sql").read_text(encoding="utf-8"))
    (folder / "bank.sql").unlink()
    return folder


def run(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """The rows that the last of some statements gives."""
    with closing(sqlite3.connect(path / "bank.db", isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def contexts(path: Path) -> dict[int, list[int]]:
    """Positions by position, from digests."""
    trained = Bank.open(path).snapshot().by_position
    position_of = {adapter.digest: position for position, adapter in trained.items()}
    return {position: [position_of[digest] for digest in adapter.context] for position, adapter in trained.items()}


def test_an_upgrade_keeps_what_each_adapter_was_trained_on_top_of(path: Path) -> None:
    assert run(path, "SELECT count(*) FROM adapter_context") == [(OLD_ROWS,)]
    backup = upgrade_database(path).backup
    assert contexts(path) == CONTEXT
    with Bank.open(path).catalog.read() as view:
        rows = view.rows("adapter_context")
        assert all(is_sealed("adapter_context", row) for row in rows)
        assert list(view.problems(full=True)) == []
    assert len(rows) == NEW_ROWS
    assert [(row["member"], row["part"]) for row in rows if row["adapter"] == 6] == [(5, "lineage"), (2, "without")]
    api.restore(path, backup, incomplete=True)  # the copy of the old schema is read too
    assert upgrade_database(path).before == "0004"
    assert contexts(path) == CONTEXT


def test_a_damaged_row_is_not_written_anew(path: Path) -> None:
    run(path, "UPDATE adapter_context SET member = 2 WHERE adapter = 6 AND ordinal = 3")
    before = run(path, "SELECT * FROM adapter_context")
    with pytest.raises(DamagedError, match="row '6' of adapter_context is damaged"):
        upgrade_database(path)
    assert run(path, "SELECT * FROM adapter_context") == before
