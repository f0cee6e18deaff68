"""Soft answers and texts that are set aside, on real banks of every kind, against plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import ConfigError
from lorabank.core.states import own_state
from lorabank.data.formats.parquet import from_parquet
from tests.contract.conftest import KINDS, Lab


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


def routed(bank: Path, name: str, *more: str, **config: Any) -> None:
    settings = {"mode": "routed", "name": name, "set": more, "device": "cpu"}
    api.compose(bank, ComposeConfig(**(settings | config)))


def ask(bank: Path, texts: list[str], name: str, **config: Any) -> tuple[Any, ...]:
    return api.predict(bank, texts, PredictConfig(composition=name, device="cpu", **config))


@pytest.mark.by_turns
def test_a_soft_answer_is_the_sum_over_tasks(copy, adapters, by_hand, texts) -> None:
    bank = copy("olora", 3)
    routed(bank, "soft", "answers=soft")
    tasks = Bank.open(bank).snapshot().tasks
    found = ask(bank, texts, "soft")
    own = [by_hand(bank, own_state(one), one.digest, texts).double().numpy() for one in adapters(bank)]
    several = 0
    for i, one in enumerate(found):
        asked = {task: p for task, p in one.posterior.items() if p >= 0.01}
        if max(asked.values()) >= 0.95:
            asked = {one.task: 1.0}
        totals: dict[str, float] = {}
        for t, task in enumerate(tasks):
            for label, p in zip(task.labels, own[t][i], strict=True):
                totals[label] = totals.get(label, 0.0) + asked.get(task.name, 0.0) * p / sum(asked.values())
        several += len(asked) > 1
        assert one.probability == pytest.approx(max(totals.values()), abs=2e-6)
        assert totals[one.label] == pytest.approx(max(totals.values()), abs=2e-6)
    assert several > len(texts) / 4


def test_hard_answers_and_their_cells_are_the_same_beside_soft_ones(copy, texts) -> None:
    bank = copy("olora", 2)
    routed(bank, "hard")
    before = ask(bank, texts, "hard")
    (scored,) = api.evaluate(bank, EvalConfig(compositions=("hard",), device="cpu"))
    routed(bank, "soft", "answers=soft")
    (soft,) = api.evaluate(bank, EvalConfig(compositions=("soft",), device="cpu"))
    assert soft.computed == 2
    assert [(one.label, one.probability) for one in before] == [
        (one.label, one.probability) for one in ask(bank, texts, "hard")
    ]
    assert api.evaluate(bank, EvalConfig(compositions=("hard",), device="cpu"))[0].values == scored.values
    rows = from_parquet(Bank.open(bank).read_blob(Bank.open(bank).snapshot().dataset("one", "eval").blob))
    right = [one.label == label for one, label in zip(ask(bank, list(rows.texts), "soft"), rows.labels, strict=True)]
    assert soft.values[2][0] == pytest.approx(np.mean(right))


def test_one_task_answers_softly_as_itself(copy, texts) -> None:
    bank = copy("olora", 1)
    routed(bank, "soft", "answers=soft")
    own = api.predict(bank, texts, PredictConfig(task="one", device="cpu"))
    found = ask(bank, texts, "soft", abstain=0.99)
    assert [(one.label, one.adapters) for one in found] == [(one.label, one.adapters) for one in own]
    assert [one.probability for one in found] == pytest.approx([one.probability for one in own], abs=1e-6)


def test_unlikely_texts_are_set_aside(copy, texts) -> None:
    bank = copy("olora", 3)
    routed(bank, "routed")
    every = ask(bank, texts, "routed")
    sure = sorted(max(one.posterior.values()) for one in every)
    least = (sure[5] + sure[6]) / 2
    for one, before in zip(ask(bank, texts, "routed", abstain=least), every, strict=True):
        if max(before.posterior.values()) >= least:
            assert one == before
        else:
            assert (one.label, one.task, one.probability, one.adapters) == (None, None, None, {})
            assert one.posterior == before.posterior
            assert list(one.posterior.values()) == sorted(one.posterior.values(), reverse=True)


def test_eval_reports_what_is_answered(copy) -> None:
    bank = copy("olora", 3)
    routed(bank, "routed")
    snapshot = Bank.open(bank).snapshot()
    own, right, confidence = [], [], []
    for task in snapshot.tasks:
        rows = from_parquet(Bank.open(bank).read_blob(snapshot.dataset(task.name, "eval").blob))
        for one, label in zip(ask(bank, list(rows.texts), "routed"), rows.labels, strict=True):
            confidence.append(max(one.posterior.values()))
            own.append(one.task == task.name)
            right.append(one.label == label)
    threshold = round(float(np.median(confidence)), 2)
    sure = np.array(confidence) >= threshold
    (report,) = api.evaluate(bank, EvalConfig(compositions=("routed",), abstain=threshold, device="cpu"))
    told = report.routing["abstention"]
    assert 0 < told["coverage"] < 1
    assert told["coverage"] == pytest.approx(np.mean(sure))
    assert told["routed"] == pytest.approx(np.mean(np.array(own)[sure]))
    assert told["score"] == pytest.approx(np.mean(np.array(right)[sure]))
    assert np.mean(told["covered"]) == pytest.approx(told["coverage"])
    assert report.routing["confidence"] == pytest.approx(np.mean(confidence))
    assert report.routing["calibration_error"] == pytest.approx(abs(np.mean(confidence) - np.mean(own)))
    assert np.mean(report.routing["right"]) == pytest.approx(np.mean(own))


def test_a_cell_without_probabilities_is_scored_again_for_a_threshold(copy, monkeypatch) -> None:
    from lorabank.evaluation.routing import calibration

    bank = copy("olora", 2)
    routed(bank, "routed")
    with monkeypatch.context() as patch:
        patch.setattr(calibration, "KEY", "of another version")
        api.evaluate(bank, EvalConfig(compositions=("routed",), device="cpu"))
    (report,) = api.evaluate(bank, EvalConfig(compositions=("routed",), device="cpu"))
    assert (report.computed, report.routing["calibration_error"]) == (0, None)
    (report,) = api.evaluate(bank, EvalConfig(compositions=("routed",), abstain=0.5, device="cpu"))
    assert report.computed == 2
    assert report.routing["calibration_error"] is not None


def test_what_knows_no_probabilities_refuses(copy, texts) -> None:
    bank = copy("olora", 2)
    api.compose(bank, ComposeConfig(mode="manual", scores=False, device="cpu"))
    with pytest.raises(ConfigError, match="does not route") as caught:
        api.predict(bank, texts, PredictConfig(composition="manual", abstain=0.8, device="cpu"))
    assert list(caught.value.commands) == [Command("compose", "--mode", "routed")]
    routed(bank, "near", "clusters_per_task=2", router="kmeans")
    for config, said in (
        ({"composition": "near"}, "gives no probabilities"),
        ({"composition": "manual"}, "does not route"),
        ({"task": "one"}, "is given"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            api.predict(bank, texts, PredictConfig(**config, abstain=0.8, device="cpu"))
        again = Command("compose", "--mode", "routed", "--name", "near", "--router", "layered", "--replace")
        ask_near = Command("predict", "--composition", "near", "--abstain", "0.8", "TEXT")
        assert list(caught.value.commands) == [again if said == "gives no probabilities" else ask_near]
    for name, said in (("near", "gives no probabilities"), ("manual", "given the task")):
        with pytest.raises(ConfigError, match=said) as caught:
            api.evaluate(bank, EvalConfig(compositions=(name,), abstain=0.8, device="cpu"))
        assert ("near" in caught.value.commands[0]) == (name == "near")
    with pytest.raises(ConfigError, match="two decimals"):
        api.evaluate(bank, EvalConfig(compositions=("near",), abstain=0.805, device="cpu"))


def test_soft_answers_that_are_refused_name_the_composition_to_make(copy) -> None:
    bank = copy("olora", 2)
    soft = ComposeConfig(mode="routed", router="kmeans", name="blend", set=("answers=soft", "clusters_per_task=2"))
    with pytest.raises(ConfigError, match="need calibrated probabilities") as caught:
        api.compose(bank, soft)
    assert caught.value.commands[0][:5] == ("compose", "--mode", "routed", "--name", "blend")
