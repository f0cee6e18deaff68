"""The row of a method in ``benchmarks.learning``, on a bank of two tasks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.learning import Method
from benchmarks.task_orders import Asked
from lorabank import api
from lorabank.core.config import EvalConfig
from tests.contract.conftest import Lab

ASKED = Asked("demo", "minilm", 24, 12)


@pytest.mark.parametrize(("variant", "strategy"), [("lora", "olora"), ("hydralora", "isolated")])
def test_what_was_learnt_and_forgotten_is_in_the_row(
    make_lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, strategy: str
) -> None:
    lab: Lab = make_lab("bert")
    monkeypatch.setattr(learning, "learn_all", lambda bank, *_: shutil.copytree(made, bank))
    made = tmp_path / "made"
    for task in ("one", "two"):
        lab.add(made, task, strategy=strategy, variant=variant)
    row = learning.measured(tmp_path, ASKED, Method(variant, "kaiming"), strategy, 0)
    (report,) = api.evaluate(made, EvalConfig(forgetting_matrix=True, device="cpu"))
    first, last = report.values[-2][0], report.values[-1]
    assert row["average_accuracy"] == pytest.approx(sum(last) / 2)
    assert row["learning_accuracy"] == pytest.approx((first + last[1]) / 2)
    assert row["forgetting"] == pytest.approx(first - last[0])
    assert (row["capacity_left"] is None) == (variant == "hydralora")
