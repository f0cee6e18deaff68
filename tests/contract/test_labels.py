"""How the rows of each label were answered: from one pass, against plain transformers, on each kind of base."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import confusion_matrix, f1_score

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.catalog.rows import sealed
from lorabank.bank.objects.canonical import canonical
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.core.errors import DamagedError
from lorabank.core.states import own_state
from lorabank.data.formats.parquet import from_parquet
from tests.contract.conftest import KINDS


def rows_of(bank: Path, task: str) -> Any:
    opened = Bank.open(bank)
    return from_parquet(opened.read_blob(opened.snapshot().dataset(task, "eval").blob))


@pytest.fixture
def lab(make_lab, request):
    return make_lab(getattr(request, "param", "bert"))


@pytest.mark.parametrize("lab", KINDS, indirect=True)
def test_eval_of_a_task_says_what_plain_transformers_says(lab, by_hand) -> None:
    bank = lab.bank("olora", 2)
    adapter = Bank.open(bank).snapshot().adapter_of("two")
    rows, names = rows_of(bank, "two"), list(Bank.open(bank).snapshot().task("two").labels)
    said = by_hand(bank, own_state(adapter), adapter.digest, list(rows.texts))
    answers = [names[k] for k in said.argmax(-1).tolist()]
    (report,) = api.evaluate(bank, EvalConfig(task="two", device="cpu"))
    found = report.labels["two"]
    assert found.macro_f1 == pytest.approx(
        f1_score(rows.labels, answers, labels=sorted(set(rows.labels)), average="macro", zero_division=0)
    )
    matrix = confusion_matrix(rows.labels, answers, labels=names)
    counts = {(want, got): n for want, got, n in found.confusion}
    assert [[counts.get((want, got), 0) for got in names] for want in names] == matrix.tolist()
    wrong = [row for row in range(len(rows)) if answers[row] != rows.labels[row]]
    surest = sorted(wrong, key=lambda row: -float(said[row].max()))[:10]
    assert {one.row for one in found.mistakes} == {row + 1 for row in surest}
    for one in found.mistakes:
        assert one.probability == pytest.approx(float(said[one.row - 1].max()), abs=1e-4)
        assert (one.text, one.wanted) == (rows.texts[one.row - 1], rows.labels[one.row - 1])
        assert one.answered == answers[one.row - 1]


def test_what_was_added_says_the_same_at_once(copy, lab) -> None:
    bank = copy("olora", 1)
    result = lab.add(bank, "two")
    (report,) = api.evaluate(bank, EvalConfig(task="two", device="cpu"))
    assert report.computed == 0
    assert result.score["labels"] == report.labels["two"]
    (whole,) = api.evaluate(bank, EvalConfig(device="cpu"))
    assert set(whole.labels) == {"one", "two"}
    assert whole.labels["two"].confusion == report.labels["two"].confusion


def test_a_composition_has_them_too(copy) -> None:
    bank = copy("olora", 3)
    api.compose(bank, ComposeConfig(mode="prototype", set=("clusters_per_task=2",), device="cpu"))
    (report,) = api.evaluate(bank, EvalConfig(compositions=("prototype",), forgetting_matrix=True, device="cpu"))
    for task, accuracy, count in zip(report.tasks, report.values[-1], report.counts, strict=True):
        found = report.labels[task]
        assert sum(rows for _, _, rows in found.confusion) == count
        right = sum(rows for want, got, rows in found.confusion if want == got)
        assert right / count == pytest.approx(accuracy)
        assert {one.label for one in found.labels} == set(rows_of(bank, task).labels)


def strip(bank: Path) -> None:
    """Cells as they were before their labels' scores were kept."""
    change(bank, lambda detail: {name: value for name, value in detail.items() if name != "labels"})


def change(bank: Path, of: Any) -> None:
    opened = Bank.open(bank)
    details = {record.key: record.detail for record in opened.all_evaluations()}
    with closing(sqlite3.connect(bank / "bank.db", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        for row in connection.execute("SELECT * FROM evaluations").fetchall():
            new = dict(row) | {"detail": canonical(of(details[row["key"]]))}
            new = sealed("evaluations", {name: value for name, value in new.items() if name != "row_digest"})
            sets = ", ".join(f'"{column}" = ?' for column in new)
            connection.execute(f"UPDATE evaluations SET {sets} WHERE key = ?", (*new.values(), row["key"]))


def test_a_cell_from_before_is_shown_without_and_computed_again_when_its_task_is_asked_for(copy) -> None:
    bank = copy("olora", 2)
    (before,) = api.evaluate(bank, EvalConfig(task="one", device="cpu"))
    strip(bank)
    stored = Bank.open(bank).all_evaluations()
    (whole,) = api.evaluate(bank, EvalConfig(device="cpu"))
    assert (whole.computed, whole.labels) == (0, {})
    (again,) = api.evaluate(bank, EvalConfig(task="one", device="cpu"))
    assert again.labels == before.labels
    assert again.values == before.values
    assert Bank.open(bank).all_evaluations() == stored


GOOD: dict[str, Any] = {
    "macro_f1": 0.5, "most": 2, "names": ["a", "b"], "counts": [[2, 1, 1], [1, 2, 1]], "wrong": [[0, 1, 1]],
    "unlisted": 0, "worst": [[1, "a", "b", 0.5]],
}  # fmt: skip
BAD: list[Any] = [
    {"names": ["a", 1]}, {"names": "ab"}, {"counts": [[2, 1, 1]]}, {"counts": [[2, 1], [1, 2, 1]]}, {"counts": 3},
    {"wrong": [[0, 2, 1]]}, {"wrong": [[-1, 0, 1]]}, {"wrong": [[0, 1]]}, {"worst": [[0, "a", "b", 0.5]]},
    {"worst": [[1, "a", ["b"], 0.5]]}, {"worst": [[1, "a", "b", "0.5"]]}, {"most": "2"}, {"macro_f1": None},
    {"unlisted": -1}, {"names": None},
]  # fmt: skip


@pytest.mark.parametrize("bad", [*BAD, "missing", "list"])
def test_what_somebody_else_wrote_there_is_judged(copy, bad) -> None:
    bank = copy("olora", 1)
    value: Any = {**GOOD, **bad} if isinstance(bad, dict) else [GOOD] if bad == "list" else {"macro_f1": 0.5}
    change(bank, lambda detail: {**detail, "labels": GOOD})
    assert Bank.open(bank).all_evaluations()
    change(bank, lambda detail: {**detail, "labels": value})
    with pytest.raises(DamagedError, match="its detail cannot be"):
        Bank.open(bank).all_evaluations()
