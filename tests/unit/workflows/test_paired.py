"""eval --against: the differences of rows, as predict answers them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import comb
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError, IncompatibleError, NotFoundError
from lorabank.evaluation.row_scores import KEY
from lorabank.workflows import evaluate
from lorabank.workflows.assemble import read_rows_of

AGAINST = EvalConfig(compositions=("mixed",), against="as-trained", device="cpu")


@pytest.fixture
def mixed(bank, compose):
    compose("manual", name="mixed", set=("weights=first=1,second=-1",))
    return bank


def right(bank, task: str, composition: str | None) -> list[bool]:
    """Whether each row is answered rightly."""
    opened = Bank.open(bank)
    rows = read_rows_of(opened, opened.snapshot(), task, "eval")
    answers = api.predict(bank, rows.texts, PredictConfig(task=task, composition=composition, device="cpu"))
    return [answer.label == label for answer, label in zip(answers, rows.labels, strict=True)]


def test_the_rows_that_one_alone_got_right_decide(mixed) -> None:
    (report,) = api.evaluate(mixed, AGAINST)
    found = report.against
    assert found.baseline == "as-trained"
    differences = []
    for number, task in enumerate(("first", "second")):
        one, other = right(mixed, task, "mixed"), right(mixed, task, None)
        better = sum(a and not b for a, b in zip(one, other, strict=True))
        worse = sum(b and not a for a, b in zip(one, other, strict=True))
        test, n = found.tasks[task], better + worse
        assert (test.better, test.worse, test.rows) == (better, worse, len(one))
        tail = sum(comb(n, k) for k in range(min(better, worse) + 1)) / 2**n
        assert test.p_value == pytest.approx(min(1.0, 2 * tail))
        differences.append((sum(one) - sum(other)) / len(one))
        assert test.difference == pytest.approx(differences[-1])
        assert found.values[task] == pytest.approx(sum(other) / len(other))
        assert report.values[-1][number] == pytest.approx(sum(one) / len(one))
    assert any(differences), "the composition must answer otherwise somewhere"
    assert found.overall.difference == pytest.approx(sum(differences) / 2)


def test_a_cell_that_kept_no_rows_is_answered_again(mixed, monkeypatch) -> None:
    (before,) = api.evaluate(mixed, AGAINST)
    monkeypatch.setattr(evaluate, "stored_rows", lambda cell: None)
    (again,) = api.evaluate(mixed, AGAINST)
    assert again.against == before.against
    assert again.computed == 0
    assert all(KEY in cell.detail for cell in Bank.open(mixed).all_evaluations())


def test_the_baseline_is_not_tested_against_itself(mixed) -> None:
    baseline, report = api.evaluate(mixed, EvalConfig(all=True, against="as-trained", device="cpu"))
    assert baseline.against is None
    assert report.against.baseline == "as-trained"


def test_a_baseline_of_another_bank(mixed, tmp_path) -> None:
    """A copy: what this bank's baseline says, that of the copy says too."""
    other = Path(shutil.copytree(mixed, tmp_path / "other"))
    here = api.evaluate(mixed, AGAINST)[0].against
    assert api.evaluate(mixed, replace(AGAINST, against_bank=str(other)))[0].against == here
    config = EvalConfig(against="as-trained", against_bank=str(other), device="cpu")
    (same,) = api.evaluate(mixed, config)
    assert (same.against.overall.difference, same.against.overall.p_value) == (0.0, 1.0)


def test_other_rows_are_not_paired(mixed, tmp_path, rows) -> None:
    other = tmp_path / "other"
    config = TrainConfig(data=str(rows("other.jsonl", ("no", "yes"), seed=9)), epochs=1, device="cpu", max_length=16)
    api.add_task(other, "first", config, init=InitConfig(base=api.show(mixed, "first")["base"]["folder"]))
    with pytest.raises(IncompatibleError, match="not scored on the same rows of task 'first' by accuracy"):
        api.evaluate(mixed, replace(AGAINST, against_bank=str(other)))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"against": "miXed"}, NotFoundError, "miXed"),
        ({"against": "first"}, ConfigError, "'first' is a task"),
        ({"compositions": ("second",)}, ConfigError, "'second' is a task"),
        ({"task": "first", "against": "mixed"}, ConfigError, "--against scores something else"),
    ],
)
def test_what_cannot_be_a_baseline(mixed, config, error, message: str) -> None:
    with pytest.raises(error, match=message):
        api.evaluate(mixed, EvalConfig(**config, device="cpu"))
