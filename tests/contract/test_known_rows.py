"""Evaluation rows that a task of the bank was trained on are counted and told, whoever brings them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.observer import SilentObserver
from lorabank.data.known import HEADING, count_known, row_digests
from lorabank.data.rows import Rows
from lorabank.workflows import task_data
from tests.contract.conftest import Lab


class Ear(SilentObserver):
    """Keeps what is said before training or scoring begins."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.begun = False

    def notice(self, message: str) -> None:
        if not self.begun:
            self.said.append(message)

    def start(self, what: str, total: int) -> None:
        self.begun = True


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def shared(lab: Lab, tmp_path: Path) -> tuple[Path, Path, int]:
    """Rows of a new task, evaluation rows of which some are rows that ``one`` was trained on, and how many."""
    bank = Bank.open(lab.bank("isolated", 2))
    held = {row["text"] for row in lines(lab.data("one"))}
    from lorabank.data.formats.parquet import from_parquet

    evaluated = set(from_parquet(bank.read_blob(bank.snapshot().dataset("one", "eval").blob)).texts)
    trained = sorted(held - evaluated)[:3]
    new = [{"text": f"z z z {number}", "label": f"part{number % 2}"} for number in range(12)]
    train, evaluation = tmp_path / "new.jsonl", tmp_path / "new-eval.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in new), encoding="utf-8")
    asked = [{"text": text, "label": f"part{n % 2}"} for n, text in enumerate([*trained, "q q q", "r r r"])]
    evaluation.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return train, evaluation, len(trained)


def test_add_task_says_so_before_training_and_in_the_record(lab: Lab, copy: Callable[..., Path], shared) -> None:
    train, evaluation, count = shared
    bank = copy("isolated", 2)
    one = Bank.open(bank).snapshot().adapter_of("one").digest
    settings = lab.settings("three", data=str(train), eval_data=str(evaluation))
    assert api.plan_task(bank, "three", settings).known_rows == {"one": count}
    ear = Ear()
    result = api.add_task(bank, "three", settings, observer=ear)
    assert result.adapter.metrics["known_rows"] == {one: count}
    (said,) = [line for line in ear.said if "are among the training rows" in line]
    assert said.startswith(f"{count} of 5 evaluation rows are among the training rows of 'one'")
    assert api.show(bank, "three")["adapter"]["metrics"]["known_rows"] == {"one": count}
    assert Bank.open(bank).verify(full=True) == []


def test_import_says_so_before_scoring(lab: Lab, copy: Callable[..., Path], shared, tmp_path: Path) -> None:
    train, evaluation, count = shared
    bank = copy("isolated", 2)
    api.export(bank, "two", tmp_path / "folder")
    ear = Ear()
    settings = lab.settings("two", data=str(train), eval_data=str(evaluation))
    labels = Bank.open(bank).snapshot().task("two").labels
    result = api.import_adapter(bank, tmp_path / "folder", "again", config=settings, labels=labels, observer=ear)
    assert list(result.adapter.metrics["known_rows"].values()) == [count]
    assert any(line.startswith(f"{count} of 5 evaluation rows") for line in ear.said)
    train_data = next(data for data in result.datasets if data.split == "train")
    assert train_data.row_digests is None  # nobody knows what it was trained on


def test_rows_of_other_tasks_are_not_known(lab: Lab) -> None:
    adapters = Bank.open(lab.bank("isolated", 2)).snapshot().by_position
    assert all("known_rows" not in adapter.metrics for adapter in adapters.values())


def test_tasks_without_digests_say_nothing(lab: Lab, shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of older versions."""
    train, evaluation, _ = shared
    sound = task_data.dataset_records
    monkeypatch.setattr(
        "lorabank.workflows.learning.train.dataset_records",
        lambda *args, **kwargs: tuple(one._replace(row_digests=None) for one in sound(*args, **kwargs)),
    )
    from lorabank.core.config import InitConfig

    bank = tmp_path / "older"
    api.add_task(bank, "one", lab.settings("one"), init=InitConfig(base=str(lab.base)))
    settings = lab.settings("three", data=str(train), eval_data=str(evaluation))
    assert api.plan_task(bank, "three", settings).known_rows == {}


def test_a_damaged_blob_is_told_and_nothing_else(lab: Lab, copy: Callable[..., Path], shared) -> None:
    train, evaluation, _ = shared
    path = copy("isolated", 2)
    bank = Bank.open(path)
    digest = bank.snapshot().dataset("one", "train").row_digests
    blob = path / "blobs" / digest[:2] / digest
    blob.chmod(0o600)
    blob.write_bytes(b"broken")
    assert any(finding.kind == "blob" for finding in bank.verify(full=False))
    ear = Ear()
    settings = lab.settings("three", data=str(train), eval_data=str(evaluation))
    assert "known_rows" not in api.add_task(path, "three", settings, observer=ear).adapter.metrics
    assert any("cannot tell" in line and "'one'" in line for line in ear.said)


def test_digests_are_of_distinct_rows_and_in_order() -> None:
    rows = Rows(("b", "a", "b"), ("x", "x", "y"), "s", ("text", "label"), (1, 2, 3))
    stored = row_digests(rows)
    body = stored[len(HEADING) :]
    assert stored == row_digests(rows.take([1, 0]))
    assert (len(body), body[:8] < body[8:]) == (16, True)
    assert count_known(rows, stored) == 3
    assert count_known(Rows(("c", "a"), (), "s", ("text",), (1, 2)), stored) == 1
    plain = Rows(("", ""), ("whole text", "other"), "s", ("text",), (1, 2))
    assert count_known(plain, row_digests(plain.take([1]))) == 1
