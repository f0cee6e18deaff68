"""The audit of a router on real banks: what it confuses, and whether a name gives its task away."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, PredictConfig
from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.data.formats.parquet import from_parquet


def audit(bank: Path, **config: Any) -> Any:
    (report,) = api.evaluate(bank, EvalConfig(**({"compositions": ("routed",)} | config), audit=True, device="cpu"))
    return report


def test_confusions_are_those_of_the_answers(copy) -> None:
    bank = copy("olora", 3)
    api.compose(bank, ComposeConfig(mode="routed", name="routed", device="cpu"))
    report = audit(bank)
    confusion, tasks = report.routing["confusion"], report.routing["tasks"]
    pairs = {(one.task, one.routed): one.rows for one in report.audit.confused}
    assert pairs
    assert pairs == {
        (own, other): confusion[i][j]
        for i, own in enumerate(tasks)
        for j, other in enumerate(tasks)
        if i != j and confusion[i][j]
    }
    assert report.audit.right == pytest.approx(report.routing["accuracy"])
    snapshot = Bank.open(bank).snapshot()
    for pair in report.audit.confused:
        rows = from_parquet(Bank.open(bank).read_blob(snapshot.dataset(pair.task, "eval").blob))
        texts = [rows.texts[one.row - 1] for one in pair.examples]
        assert texts == [one.text for one in pair.examples]
        (first, *_) = api.predict(bank, texts, PredictConfig(composition="routed", device="cpu"))
        assert (first.task, first.posterior[pair.routed]) == (pair.routed, pytest.approx(pair.examples[0].probability))
    assert report.audit == audit(bank).audit


def test_a_task_with_its_instruction_in_every_row_leaks(lab, tmp_path) -> None:
    chance = random.Random(0)

    def rows(name: str, asked: str) -> str:
        letters = [[*asked, *chance.choices("klmnopqrst", k=3)] for _ in range(120)]
        path = tmp_path / f"{name}.jsonl"
        lines = [{"text": " ".join(row), "label": f"l{k % 2}"} for k, row in enumerate(letters)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    bank = tmp_path / "bank"
    for name, asked in (("first", "aaaabbbb"), ("second", "yyyyzzzz")):
        settings = lab.settings("one", data=rows(name, asked), epochs=0.1)
        api.add_task(bank, name, settings, init=InitConfig(base=str(lab.base)))
    api.compose(bank, ComposeConfig(mode="routed", name="routed", device="cpu"))
    found = audit(bank).audit
    assert found.right == 1.0
    assert found.right_stripped < 0.8
    assert found.warnings
    assert {task.task: list(task.phrases) for task in found.tasks} == {
        "first": ["a a a a b b b b"],
        "second": ["y y y y z z z z"],
    }


def test_what_is_given_the_task_has_no_router_to_audit(copy) -> None:
    bank = copy("olora", 2)
    with pytest.raises(ConfigError, match="--audit is about routed texts, and as-trained is given the task"):
        audit(bank, compositions=())
    assert audit(bank, compositions=(), head_from="gaussian").audit.rows == 24
    with pytest.raises(ConfigError, match="--audit"):
        audit(bank, compositions=(), task="one")


class Told(SilentObserver):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


def as_of_an_older_version(bank: Path, *, samples: bool) -> None:
    """A bank whose tasks kept nothing for this router yet, and perhaps no samples either."""
    with closing(sqlite3.connect(bank / "bank.db")) as database, database:
        database.execute("DELETE FROM adapter_objects WHERE role = 'routing'")
        if not samples:
            database.execute("DELETE FROM datasets WHERE split = 'calibration'")


def test_heads_are_routed_by_what_is_made_of_the_kept_samples(copy) -> None:
    """As a composition of such a bank is routed."""
    bank, told, heads = copy("isolated", 3), Told(), EvalConfig(head_from="layered", device="cpu")
    as_of_an_older_version(bank, samples=True)
    (report,) = api.evaluate(bank, heads, told)
    assert told.notices.count("routing statistics of one, two, three are computed from the kept samples") == 1
    assert report.task_id == "routed"
    api.compose(bank, ComposeConfig(mode="routed", router="layered", name="routed", device="cpu"), told)
    (composed,) = api.evaluate(bank, EvalConfig(compositions=("routed",), device="cpu"), told)
    assert report.routing["confusion"] == composed.routing["confusion"]
    (again,) = api.evaluate(bank, heads, told)
    assert (again.computed, again.values) == (0, report.values)


def test_without_samples_no_head_can_be_routed(copy) -> None:
    bank = copy("isolated", 2)
    as_of_an_older_version(bank, samples=False)
    with pytest.raises(NotFoundError, match="'one' keeps no statistics for this router, and no samples"):
        api.evaluate(bank, EvalConfig(head_from="layered", device="cpu"))
