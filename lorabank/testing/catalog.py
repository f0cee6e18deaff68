"""What every place for a bank's rows must keep: see `lorabank.bank.catalog.base.Catalog`."""

from __future__ import annotations

import os
import signal
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from lorabank.bank.catalog.base import AT_ONCE, Catalog, RowRefused, Transaction, View, rows_with
from lorabank.bank.catalog.columns import TABLES, Column
from lorabank.bank.catalog.rows import is_sealed, sealed
from lorabank.core.errors import BusyError
from lorabank.testing.cuts import refused

Point = Callable[[], None]
"""Called wherever a change may be cut off."""

_DIGESTS = ["a" * 64, "b" * 64]
_ODD = {"text": "é \u2028 ' \" %s ?", "integer": 2**63 - 1, "real": 0.1, "boolean": 1}
_PLAIN = {"text": "x", "integer": 3, "real": 1.0, "boolean": 0}
_KEYS = {"adapters.id": 1, "blobs.digest": _DIGESTS[0], "compositions.id": 1, "events.id": 1, "tasks.position": 1}


class CatalogContract(ABC):
    """The promises of `lorabank.bank.catalog.base.Catalog`."""

    @abstractmethod
    def make(self, folder: Path) -> Catalog:
        """The catalog that is kept in a folder, without a row when it is new; two calls give two views of the same."""

    def ends(self, folder: Path, change: Callable[[Catalog, Point], None], step: int) -> bool:
        """Make a change in a process that is killed at the step-th point of it, counted from 1.

        Returns:
            Whether the change ended before.
        """
        child = os.fork()
        if child == 0:
            left = [step]

            def point() -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                change(self.make(folder), point)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), "the change failed"
        return code == 0

    # --------------------------------------------------------------------------------------------- rows in and out

    def test_rows_come_back_as_they_went_in(self, tmp_path: Path) -> None:
        """In every table, for every view, with their types: their digests still fit."""
        catalog = self.make(tmp_path)
        rows = {table: [row(table), row(table, 1)] for table in TABLES}
        rows["bank"], rows["base_model"] = rows["bank"][:1], rows["base_model"][:1]
        rows["tasks"][1] = row("tasks", 1, statistics=_DIGESTS[1])
        rows["events"][1] = row("events", 1, undoes=1)
        with catalog.read() as view:
            assert not any(view.rows(table) or view.last(table) for table in TABLES)
        with catalog.write() as transaction:
            for table, two in rows.items():
                for one in two:
                    transaction.insert(table, one)
        for other in (catalog, self.make(tmp_path)):
            with other.read() as view:
                for table, two in rows.items():
                    found = view.rows(table)
                    assert list(map(_typed, found)) == list(map(_typed, two))
                    assert all(is_sealed(table, one) for one in found)
                    assert view.last(table) == found[-1]
                assert [*view.problems(full=True), *view.problems(full=False)] == []

    def test_rows_are_found_by_their_columns_in_the_order_in_which_they_came(self, tmp_path: Path) -> None:
        """By one or several values, including NULL, or by any of some; a search without a match returns nothing."""
        catalog = self.make(tmp_path)
        with catalog.write() as transaction:
            for key, task in (("b", "x"), ("a", "y"), ("c", "x")):
                transaction.insert("evaluations", row("evaluations", key=key, task=task))
            transaction.insert("tasks", row("tasks", note=None))
            transaction.insert("tasks", row("tasks", 1, note="n"))
        with catalog.read() as view:
            assert _keys(view) == ["b", "a", "c"]
            assert _keys(view, task="x") == ["b", "c"]
            assert _keys(view, task="x", key="c") == ["c"]
            assert _keys(view, task="x", key="a") == []
            assert _keys(view, key=("c", "b", "d")) == ["b", "c"]
            assert _keys(view, key=("c", "a"), task="x") == ["c"]
            assert _keys(view, key=()) == []
            assert view.columns("evaluations", "task", "key") == [("x", "b"), ("y", "a"), ("x", "c")]
            assert view.columns("tasks", "note") == [(None,), ("n",)]
            assert view.columns("blobs", "digest") == []
            assert (view.last("evaluations") or {})["key"] == "c"
            assert [one["position"] for one in view.rows("tasks", note=None)] == [1]
            assert [one["position"] for one in view.rows("tasks", note="n")] == [2]

    def test_rows_with_any_of_many_values_are_found_in_parts(self, tmp_path: Path) -> None:
        """As many as several searches have, each once though it is asked for twice, and no other."""
        catalog = self.make(tmp_path)
        keys = [f"{number:04d}" for number in range(2 * AT_ONCE + 2)]
        with catalog.write() as transaction:
            for key in keys:
                transaction.insert("evaluations", row("evaluations", key=key))
        with catalog.read() as view:
            found = [one["key"] for one in rows_with(view, "evaluations", "key", [*keys[1:], keys[1], "none"])]
        assert found == keys[1:]

    def test_columns_that_a_row_lacks_are_null(self, tmp_path: Path) -> None:
        """A row of an older description is stored as it is."""
        catalog = self.make(tmp_path)
        lacking = {column: value for column, value in row("tasks").items() if column not in ("note", "replaces")}
        with catalog.write() as transaction:
            transaction.insert("tasks", lacking)
            assert transaction.rows("tasks") == [{**lacking, "note": None, "replaces": None}]

    def test_what_is_changed_and_deleted_is_what_was_named(self, tmp_path: Path) -> None:
        """Nothing else, and the transaction sees it at once."""
        catalog = self.make(tmp_path)
        with catalog.write() as transaction:
            for number, key in enumerate("abc"):
                transaction.insert("evaluations", row("evaluations", key=key, n=number % 2))
            assert transaction.update("evaluations", {"n": 0}, task="y", value=0.25) == 2
            assert transaction.update("evaluations", {"n": 0, "key": "b"}, task="z") == 0
            assert transaction.delete("evaluations", {"key": "a"}) == 1
            assert transaction.delete("evaluations", {"key": "a"}) == 0
            assert _keys(transaction) == ["b", "c"]
        with catalog.read() as view:
            assert [(one["task"], one["value"]) for one in view.rows("evaluations")] == [("x", 1.0), ("y", 0.25)]
        with catalog.write() as transaction:
            assert transaction.delete("evaluations", {}) == 2
        with catalog.read() as view:
            assert view.last("evaluations") is None

    # ------------------------------------------------------------------------------------------------------- rules

    def test_what_breaks_a_rule_is_refused(self, tmp_path: Path) -> None:
        """And nothing of its transaction stays."""
        catalog = self.make(tmp_path)
        with catalog.write() as transaction:
            _fill(transaction)
        with catalog.read() as view:
            before = _all(view)
        for table, wrong in (
            ("tasks", row("tasks", name="other")),
            ("tasks", row("tasks", 2, name="t0", state="failed")),
            ("compositions", row("compositions", 1, name="c0", state="ready")),
            ("operations", row("operations", 1, name="o0")),
            ("datasets", row("datasets", 1, task=1, split="train")),
            ("blobs", row("blobs", digest=_DIGESTS[0])),
            ("evaluations", row("evaluations", key="k0")),
            ("adapters", row("adapters", 8)),
            ("adapter_context", row("adapter_context", member=9)),
            ("adapter_objects", row("adapter_objects", role="r", blob="c" * 64)),
            ("tasks", row("tasks", 2, labels=None)),
            ("tasks", row("tasks", 2, state="strange")),
            ("tasks", row("tasks", position=-1, name="below")),
            ("bank", row("bank", id=2)),
        ):
            refused(RowRefused, partial(_insert, catalog, table, wrong))
        for where, columns in (({"position": 1}, {"state": "strange"}), ({"position": 2}, {"name": "t0"})):
            refused(RowRefused, partial(_update, catalog, where, columns))
        with catalog.read() as view:
            assert _all(view) == before

    def test_a_tombstone_gives_its_name_away_and_several_may_have_it(self, tmp_path: Path) -> None:
        """Of those that are in use one has it."""
        catalog = self.make(tmp_path)
        for number in range(3):
            _insert(catalog, "tasks", row("tasks", number, name="same"))
            _update(catalog, {"position": number + 1}, {"state": "removed"})
        _insert(catalog, "tasks", row("tasks", 3, name="same", state="ready"))
        refused(RowRefused, lambda: _update(catalog, {"position": 1}, {"state": "ready"}))

    # ----------------------------------------------------------------------------------------- all of it or nothing

    def test_a_block_that_raises_leaves_nothing(self, tmp_path: Path) -> None:
        """Whatever it raises; the next transaction begins at once."""
        catalog = self.make(tmp_path)
        for error in (ValueError, KeyboardInterrupt):
            try:
                with catalog.write() as transaction:
                    _fill(transaction)
                    raise error
            except error:
                pass
            with catalog.read() as view:
                assert not any(view.rows(table) for table in TABLES)
        with catalog.write(patience=0.0) as transaction:
            _fill(transaction)

    def test_a_killed_process_leaves_all_or_nothing(self, tmp_path: Path) -> None:
        """Before each of its calls, before the commit and after it; the next process can write at once."""
        with self.make(tmp_path / "sound").write() as transaction:
            _change(transaction, lambda: None)
            after = _all(transaction)
        step, done = 0, False
        while not done:
            step += 1
            folder = tmp_path / str(step)
            catalog = self.make(folder)
            with catalog.read() as view:
                before = _all(view)
            done = self.ends(folder, _committed, step)
            with catalog.lock(exclusive=True, patience=0.0), catalog.write(patience=0.0) as transaction:
                last = _all(transaction)
                assert last == (after if done or step == _POINTS else before), f"killed at point {step}"
                assert list(transaction.problems(full=True)) == []
        assert step == _POINTS + 1

    # ------------------------------------------------------------------------------------ several at the same time

    def test_a_view_is_one_state(self, tmp_path: Path) -> None:
        """Also of tables that it looks at after others were committed; what is not committed is in none."""
        mine, other = self.make(tmp_path), self.make(tmp_path)
        _insert(other, "tasks", row("tasks"))
        with mine.read() as view:
            assert len(view.rows("tasks")) == 1
            with other.write() as transaction:
                transaction.insert("adapters", row("adapters"))
                transaction.update("tasks", {"position": 1}, name="renamed")
                with mine.read() as second:
                    assert second.rows("adapters") == []
                    assert second.rows("tasks") == view.rows("tasks")
            assert view.rows("adapters") == []
            assert [one["name"] for one in view.rows("tasks")] == ["t0"]
        with mine.read() as view:
            assert len(view.rows("adapters")) == 1

    def test_one_writes_at_a_time(self, tmp_path: Path) -> None:
        """A second writer without patience is refused, and reading continues beside the first."""
        mine, other = self.make(tmp_path), self.make(tmp_path)
        with mine.write() as transaction:
            transaction.insert("tasks", row("tasks"))
            refused(BusyError, lambda: other.write(patience=0.0).__enter__())
            with other.read() as view:
                assert view.rows("tasks") == []
        _insert(other, "tasks", row("tasks", 1))

    def test_no_update_is_lost(self, tmp_path: Path) -> None:
        """Of threads that each read, count on, and write."""
        _insert(self.make(tmp_path), "evaluations", row("evaluations", key="k", n=0))
        threads = [Thread(target=_count, args=(self.make(tmp_path), 10)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self.make(tmp_path).read() as view:
            assert [one["n"] for one in view.rows("evaluations")] == [40]

    def test_the_lock_is_shared_or_held_alone(self, tmp_path: Path) -> None:
        """And free again after the block, however that ends."""
        mine, other = self.make(tmp_path), self.make(tmp_path)
        for exclusive in (False, True):
            with ExitStack() as held:
                held.enter_context(mine.lock(exclusive=exclusive))
                refused(BusyError, lambda: other.lock(exclusive=True, patience=0.0).__enter__())
                if exclusive:
                    refused(BusyError, lambda: other.lock(exclusive=False, patience=0.0).__enter__())
                else:
                    held.enter_context(other.lock(exclusive=False, patience=0.0))
            with other.lock(exclusive=True, patience=0.0):
                pass
        assert not self.ends(tmp_path, _locked, 1)
        with other.lock(exclusive=True, patience=0.0):
            pass


def row(table: str, number: int = 0, **columns: Any) -> dict[str, Any]:
    """A row that a table takes; those of several numbers stand beside each other.

    References lead to what `row` makes of the number 0; one that may be missing is.
    """
    described = TABLES[table]
    values = {name: _value(table, name, column, number) for name, column in described.columns.items() if column.type}
    return sealed(table, values | columns)


def _value(table: str, name: str, column: Column, number: int) -> Any:
    if column.refers and column.empty:
        return None
    if column.refers and not (column.key and table == "adapters"):
        return _KEYS[column.refers]
    if name == "digest" and table == "blobs":
        return _DIGESTS[number]
    if column.words:
        return column.words[number % len(column.words)]
    if column.type == "integer" and (column.key or name in ("id", "position")):
        return number + 1
    if name in ("name", "role", "key") or column.key:
        return f"{table[0]}{number}" if name != "key" else f"k{number}"
    return (_ODD if number else _PLAIN)[column.type or "text"]


def _fill(transaction: Transaction) -> None:
    for table in TABLES:
        transaction.insert(table, row(table))
    transaction.insert("tasks", row("tasks", 1, state="ready"))


def _insert(catalog: Catalog, table: str, one: Mapping[str, Any]) -> None:
    with catalog.write() as transaction:
        transaction.insert(table, one)


def _update(catalog: Catalog, where: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    with catalog.write() as transaction:
        transaction.update("tasks", where, **columns)


def _all(view: View) -> dict[str, list[dict[str, Any]]]:
    return {table: [dict(one) for one in view.rows(table)] for table in TABLES}


def _typed(one: Mapping[str, Any]) -> dict[str, tuple[type, Any]]:
    return {column: (type(value), value) for column, value in one.items()}


def _keys(view: View, **where: Any) -> list[str]:
    return [one["key"] for one in view.rows("evaluations", **where)]


def _change(transaction: Transaction, point: Point) -> None:
    for table in TABLES:
        point()
        transaction.insert(table, row(table))
    point()
    transaction.update("tasks", {"position": 1}, state="failed")
    point()
    transaction.delete("operations", {})
    point()


def _committed(catalog: Catalog, point: Point) -> None:
    with catalog.lock(exclusive=False), catalog.write() as transaction:
        _change(transaction, point)
    point()


_POINTS = len(TABLES) + 4
"""Of `_committed`: the last is after the commit."""


def _locked(catalog: Catalog, point: Point) -> None:
    with catalog.lock(exclusive=True):
        point()


def _count(catalog: Catalog, times: int) -> None:
    for _ in range(times):
        with catalog.write() as transaction:
            (one,) = transaction.rows("evaluations", key="k")
            transaction.update("evaluations", {"key": "k"}, n=one["n"] + 1)
