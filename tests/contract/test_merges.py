"""A merge is checked before it is stored, and may be made of what its tasks recorded, on real banks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lorabank_cli.main import main
from safetensors.torch import load_file

from lorabank import api
from lorabank.algebra.factors import DenseDelta
from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.compose.mergers.base import Merger, Sources
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.core.shelves import MERGERS
from lorabank.models.facts.inputs import InputCovariance
from lorabank.workflows.assemble import stack_of
from lorabank.workflows.results import ComposeResult
from tests.contract.conftest import TASKS, Lab


@pytest.fixture(scope="session", params=["bert", "llama"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


def merge(bank: Path, **config: object) -> ComposeResult:
    return api.compose(bank, ComposeConfig(**({"mode": "merged", "name": "sum", "device": "cpu"} | config)))


def test_each_member_is_scored_alone_and_in_the_merge(copy) -> None:
    bank = copy("isolated", 2)
    result = merge(bank, set=("weights=one=2,two=-1",))
    assert all(value < 1e-6 for value in result.report["distance"].values())
    stored = len(Bank.open(bank).all_evaluations())
    (alone,) = api.evaluate(bank, EvalConfig(device="cpu"))  # isolated: every task is answered by its own adapter
    (together,) = api.evaluate(bank, EvalConfig(compositions=("sum",), device="cpu"))
    assert (together.computed, len(Bank.open(bank).all_evaluations())) == (0, stored)
    for j, told in enumerate(result.report["scores"]):
        assert (told["task"], told["before"], told["after"], told["rows"]) == (
            alone.tasks[j],
            alone.values[-1][j],
            together.values[-1][j],
            alone.counts[j],
        )
    shown = api.show(bank, "sum")
    assert [(score["task"], score["value"]) for score in shown["scores"]] == [
        (told["task"], told["after"]) for told in result.report["scores"]
    ]
    assert shown["composition"]["parameters"]["distance"] == result.report["distance"]


def test_states_are_weighed_as_the_sums_that_they_are(copy, adapters, by_hand, texts, tmp_path) -> None:
    bank = copy("olora", 3)
    merge(bank, over="states", set=("weights=one=0.25,two=0.25,three=0.25",), scores=False)
    told = merge(bank, name="each", set=("weights=one=0.25,two=0.25,three=0.25",), scores=False).report
    again = told["untrained_state"]["command"].line()
    assert again.endswith("--set weights=one=0.25,two=0.25,three=0.25 --over states --replace")
    digests = [adapter.digest for adapter in adapters(bank)]
    weights = dict(zip(digests, (0.75, 0.5, 0.25), strict=True))
    expected = {task: by_hand(bank, weights, own, texts) for task, own in zip(TASKS, digests, strict=True)}
    found = api.predict(bank, texts, PredictConfig(composition="sum", device="cpu", batch_size=5))
    best = [float(expected[one.task][row].max()) for row, one in enumerate(found)]
    assert [one.probability for one in found] == pytest.approx(best, abs=1e-5)
    api.export(bank, "sum", tmp_path / "exported")
    A = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    stack = stack_of(Bank.open(bank), digests)
    for module, factors in stack.modules.items():
        key = f"base_model.model.{module}.lora_"
        whole = factors.delta(torch.tensor([0.75, 0.5, 0.25])).double()
        got = A[f"{key}B.weight"].double() @ A[f"{key}A.weight"].double()
        torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-6)


def test_scores_can_be_left_out(copy) -> None:
    bank = copy("olora", 2)
    before = Bank.open(bank).all_evaluations()
    assert "scores" not in merge(bank, scores=False).report
    assert Bank.open(bank).all_evaluations() == before


def test_a_bank_without_a_task_s_rows_says_so(copy, monkeypatch) -> None:
    bank = copy("olora", 2)
    kept = Snapshot.dataset
    monkeypatch.setattr(
        Snapshot, "dataset", lambda self, task, split: None if split == "eval" else kept(self, task, split)
    )
    told: list[str] = []
    observer = SilentObserver()
    monkeypatch.setattr(observer, "notice", told.append)
    config = ComposeConfig(mode="merged", name="sum", device="cpu")
    assert set(api.compose(bank, config, observer).report) == {"distance"}
    assert told == ["the members are not scored: task 'one' keeps no evaluation rows"]


def test_what_is_too_far_changes_nothing(copy, capsys) -> None:
    bank = copy("olora", 2)
    before = Bank.open(bank).contents()
    words = [
        "compose",
        "--mode",
        "merged",
        "--set",
        "max_rank=1",
        "--tolerance",
        "1e-9",
        "--bank",
        str(bank),
        "--json",
    ]
    assert main(words) == 12
    out = capsys.readouterr()
    error = json.loads(out.out)["error"]
    assert (error["kind"], error["unchanged"]) == ("GateError", "the composition was not added to the bank")
    assert "above --tolerance 1e-09" in error["message"]
    assert "Traceback" not in out.err
    assert Bank.open(bank).contents() == before
    assert Bank.open(bank).operations() == []
    assert main([*words[:-3], "--tolerance", "1", "--bank", str(bank), "--quiet"]) == 0
    assert "distance" in capsys.readouterr().out


@dataclass(frozen=True)
class RegMean(Merger):
    """``(sum_k delta W_k G_k) (sum_k G_k)^+``, G_k the covariance of task k's inputs (arXiv 2212.09849)."""

    needs = ("inputs",)

    def merge(self, sources: Sources) -> DenseDelta:
        inputs = [InputCovariance.from_bytes(data) for data in sources.facts("inputs")]
        made = {}
        for module, factors in sources.stack.modules.items():
            grams = [one.of(module).double() for one in inputs]
            deltas = [factors.delta(row).double() for row in torch.eye(len(grams))]
            weighed = sum(delta @ gram for delta, gram in zip(deltas, grams, strict=True))
            made[module] = (weighed @ torch.linalg.pinv(sum(grams))).float()
        return DenseDelta(made)


def test_a_merger_may_ask_what_each_task_fed_into_its_modules(copy, monkeypatch) -> None:
    monkeypatch.setitem(MERGERS.table, "regmean", f"{__name__}:RegMean")
    bank = copy("inflora", 2)
    result = merge(bank, merger="regmean", scores=False)
    opened = Bank.open(bank)
    adapters = [opened.snapshot().adapter_of(task) for task in ("one", "two")]
    grams = [InputCovariance.from_bytes(opened.read_blob(adapter.objects["inputs"])) for adapter in adapters]
    for module, factors in stack_of(opened, [adapter.digest for adapter in adapters]).modules.items():
        deltas = [factors.delta(row).double().numpy() for row in torch.eye(2)]
        own = [gram.of(module).double().numpy() for gram in grams]
        made = np.linalg.lstsq((own[0] + own[1]).T, (deltas[0] @ own[0] + deltas[1] @ own[1]).T, rcond=1e-10)[0].T
        mean = (deltas[0] + deltas[1]) / 2
        expected = np.linalg.norm(made - mean) / np.linalg.norm(mean)
        assert result.report["distance"][module] == pytest.approx(expected, rel=1e-3)


def test_a_task_without_that_is_named_with_what_records_it(copy, monkeypatch) -> None:
    monkeypatch.setitem(MERGERS.table, "regmean", f"{__name__}:RegMean")
    with pytest.raises(NotFoundError, match="task 'one' recorded no 'inputs', which the merger regmean") as caught:
        merge(copy("olora", 2), merger="regmean")
    assert caught.value.hint is not None
    assert "--strategy inflora records it" in caught.value.hint
