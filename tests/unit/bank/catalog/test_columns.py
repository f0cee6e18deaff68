"""The one description of the schema: records, rows and tables follow from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import pytest

from lorabank.bank.catalog.columns import TABLES, Column, sound
from lorabank.bank.catalog.events import EventRecord
from lorabank.bank.catalog.rows import is_sealed, row_of
from lorabank.core import records
from lorabank.core.errors import DamagedError, DataError

ELSEWHERE = {
    "adapters": {"task", "context", "files", "objects"},  # from other tables, or from a join under another name
    "compositions": {"members", "adapters", "objects"},
    "datasets": {"task"},
    "operations": {"alive", "seen_at"},
}


@pytest.mark.parametrize(
    ("table", "record", "beyond"),
    [
        ("base_model", records.BaseModelRecord, set()),
        ("tasks", records.TaskRecord, set()),
        ("datasets", records.DatasetRecord, {"task_name"}),
        ("adapters", records.AdapterRecord, {"task_name"}),
        ("compositions", records.CompositionRecord, set()),
        ("evaluations", records.EvaluationRecord, set()),
        ("operations", records.OperationRecord, {"process_start"}),
        ("events", EventRecord, set()),
    ],
)
def test_a_record_has_a_field_for_each_column_that_is_read(table: str, record: Any, beyond: set[str]) -> None:
    read = {name for name, column in TABLES[table].columns.items() if column.check}
    assert read - beyond == set(record._fields) - ELSEWHERE.get(table, set())


def test_a_fact_of_an_adapter_costs_one_line_here(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the record gains is written, judged, read and sealed; rows without it keep their digest."""

    adapter = kit.adapter._replace(digest="a" * 64)

    class Wider(NamedTuple):
        variant: str | None = None

        def __getattr__(self, name: str) -> Any:
            return getattr(adapter, name)

    before = row_of("adapters", adapter, id=3)
    columns = {**TABLES["adapters"].columns, "variant": Column("text", lambda v: v != "bad", empty=True, later=True)}
    monkeypatch.setitem(TABLES, "adapters", TABLES["adapters"]._replace(columns=columns))
    assert is_sealed("adapters", before)
    assert row_of("adapters", Wider(), id=3)["row_digest"] == before["row_digest"]
    row = row_of("adapters", Wider("dora"), id=3)
    assert is_sealed("adapters", row)
    assert not is_sealed("adapters", row | {"variant": "pissa"})
    assert sound("adapters", {**row, "task_name": "a"})["variant"] == "dora"
    with pytest.raises(DamagedError):
        sound("adapters", {**row, "task_name": "a", "variant": "bad"})


def test_the_digest_is_over_the_sealed_columns_in_their_order() -> None:
    """By hand: what lies in every bank since schema 0001."""
    record = records.EvaluationRecord(
        "k", "as-trained", 2, "spam", "accuracy", 1, 8, 0.5, 1, "given", {"b": 1, "a": (2,)}, {}, "2030-01-02"
    )
    content = [
        "evaluations",
        [
            ["key", "k"], ["subject", "as-trained"], ["stage", 2], ["task", "spam"], ["metric", "accuracy"],
            ["value", 1.0], ["n", 8], ["low", 0.5], ["high", 1.0], ["task_id", "given"],
            ["settings", '{"a":[2],"b":1}'], ["detail", "{}"], ["created_at", "2030-01-02"],
        ],
    ]  # fmt: skip
    text = json.dumps(content, separators=(",", ":"))
    assert row_of("evaluations", record)["row_digest"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_number_that_is_not_finite_is_named() -> None:
    record = records.EvaluationRecord("k", "m", 1, "spam", "f1", float("nan"), 8, 0, 1, "given", {}, {}, "")
    with pytest.raises(DataError, match="evaluation of spam: value = nan is not finite"):
        row_of("evaluations", record, of="evaluation of spam: ")
