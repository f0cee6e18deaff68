"""fold: tasks answered by one adapter of bounded rank, against dense arithmetic and plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lorabank_cli.main import main
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig, EvalConfig, FoldConfig, PredictConfig
from lorabank.core.errors import ExistsError, GateError, IncompatibleError, NotFoundError
from lorabank.core.records import AdapterRecord
from lorabank.workflows import evaluate
from lorabank.workflows.learning.folded import FoldResult
from tests.contract.conftest import TASKS


def fold(bank: Path, *tasks: str, **config: object) -> FoldResult:
    return api.fold(bank, tasks, "both", FoldConfig(**({"tolerance": 1.0, "device": "cpu"} | config)))


def dense(bank: Path, digest: str) -> dict[str, np.ndarray]:
    """Delta weights of a stored adapter, float64."""
    folder = bank / "adapters" / digest
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = {key: value.double().numpy() for key, value in load_file(folder / "adapter_model.safetensors").items()}
    scaling = config["lora_alpha"] / config["r"]  # equal on every module: ranks and alphas go together
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): scaling
        * tensors[key.replace("lora_A", "lora_B")]
        @ a
        for key, a in tensors.items()
        if key.endswith(".lora_A.weight")
    }


def answers(bank: Path, task: str, texts: list[str]) -> list[float]:
    config = PredictConfig(task=task, state="learnt", device="cpu", batch_size=5)
    return [one.probability for one in api.predict(bank, texts, config)]


def ready(bank: Path) -> list[AdapterRecord]:
    snapshot = Bank.open(bank).snapshot()
    return [snapshot.adapter_of(task.name) for task in snapshot.tasks]


def test_tasks_answer_with_the_truncated_sum_and_their_own_heads(copy, adapters, by_hand, texts) -> None:
    bank = copy("isolated", 2)
    old = adapters(bank)
    result = fold(bank, "two", "one", max_rank=2)
    deltas = [dense(bank, adapter.digest) for adapter in old]
    snapshot = Bank.open(bank).snapshot()
    assert [(task.name, task.position, task.replaces) for task in snapshot.tasks] == [("one", 3, 1), ("two", 4, 2)]
    first, second = adapters(bank)
    assert (second.context, first.context, first.r, result.rank) == ((first.digest,), (), 2, 2)
    stored = dense(bank, first.digest)
    for module, delta in stored.items():
        whole = deltas[0][module] + deltas[1][module]
        u, s, vt = np.linalg.svd(whole, full_matrices=False)
        np.testing.assert_allclose(delta, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-6)
        lost = np.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2))
        assert result.report["relative_error"][module] == pytest.approx(lost, abs=1e-6)
        assert result.report["distance"][module] == pytest.approx(lost, abs=1e-6)
    assert not any(delta.any() for delta in dense(bank, second.digest).values())
    for task, adapter in (("one", first), ("two", second)):
        expected = by_hand(bank, [first.digest], adapter.digest, texts).max(-1).values.tolist()
        assert answers(bank, task, texts) == pytest.approx(expected, abs=1e-5)
    assert result.bytes_after == first.bytes + second.bytes < result.bytes_before == sum(one.bytes for one in old)
    assert Bank.open(bank).verify(full=True) == []


def test_its_scores_are_those_of_eval_before_and_after(copy) -> None:
    bank = copy("isolated", 2)
    (before,) = api.evaluate(bank, EvalConfig(device="cpu"))
    result = fold(bank, "one", "two", max_rank=1)
    (after,) = api.evaluate(bank, EvalConfig(device="cpu"))
    (together,) = api.evaluate(bank, EvalConfig(compositions=("both",), device="cpu"))
    assert [told["before"] for told in result.scores] == before.values[-1]
    assert [told["after"] for told in result.scores] == after.values[-1] == together.values[-1]
    assert after.computed == 0


def test_undo_brings_everything_back_until_gc(copy, texts) -> None:
    bank = copy("isolated", 2)
    before, answered = Bank.open(bank).snapshot(), answers(bank, "two", texts)
    fold(bank, "one", "two")
    undone = Bank.open(bank).undo()
    assert (undone.event.kind, undone.event.name) == ("fold", "both")
    assert (set(undone.back), set(undone.gone)) == ({"one", "two"}, {"one", "two", "both"})
    assert Bank.open(bank).snapshot().tasks == before.tasks
    assert answers(bank, "two", texts) == answered
    fold(bank, "one", "two")
    kept = {adapter.digest for adapter in ready(bank)}
    gone = api.gc(bank, dry_run=False, grace_hours=0)
    assert {"fold"} <= {event.kind for event in gone.lost}
    assert {path.name for path in (bank / "adapters").iterdir()} == kept


def test_one_adapter_at_its_rank_is_itself(copy, adapters) -> None:
    bank = copy("isolated", 1)
    (old,) = adapters(bank)
    fold(bank, "one")
    (new,) = adapters(bank)
    for module, delta in dense(bank, new.digest).items():
        np.testing.assert_allclose(delta, dense(bank, old.digest)[module], atol=1e-6)


def test_later_tasks_keep_their_states(copy, adapters, texts, lab) -> None:
    bank = copy("olora", 3)
    old, answered = adapters(bank), answers(bank, "three", texts)
    with pytest.raises(IncompatibleError, match="'two' was trained on top of 'one', which stays") as refused:
        fold(bank, "two", "three")
    assert [*map(str, refused.value.commands)] == ["lorabank fold two three one --into both"]
    result = fold(bank, "one", "two", max_rank=4)
    assert result.kept == {"one": ("three",), "two": ("three",)}
    api.gc(bank, dry_run=False, grace_hours=0)
    assert answers(bank, "three", texts) == answered
    assert {old[0].digest, old[1].digest} <= {path.name for path in (bank / "adapters").iterdir()}
    three, one, two = ready(bank)
    added = api.add_task(bank, "four", lab.settings("one", strategy="olora"))
    assert tuple(added.adapter.context) == (three.digest, one.digest, two.digest)
    whole = dense(bank, one.digest)
    for module, delta in dense(bank, old[0].digest).items():  # rank 4 holds two of rank 2
        np.testing.assert_allclose(whole[module], delta + dense(bank, old[1].digest)[module], atol=1e-6)


def test_what_loses_too_much_changes_nothing(copy, monkeypatch) -> None:
    bank = copy("isolated", 2)
    before = Bank.open(bank).contents()
    told = [{"task": task, "metric": "accuracy", "before": 0.9, "after": 0.85, "rows": 12} for task in TASKS[:2]]
    monkeypatch.setattr(evaluate, "scores_beside", lambda *args, **given: (told, []))
    with pytest.raises(GateError, match=r"'one' falls by 0\.05 \(0\.9 to 0\.85\), above --tolerance 0\.02"):
        fold(bank, "one", "two", tolerance=0.02)
    assert Bank.open(bank).contents() == before
    assert Bank.open(bank).operations() == []
    plan = api.plan_fold(bank, ("one", "two"), "both", FoldConfig(tolerance=0.02, device="cpu"))
    assert plan.refused.startswith("the score of task 'one' falls by 0.05")


def test_a_chain_of_one_adapter_is_refused(copy, capsys) -> None:
    bank = copy("seqlora", 2)
    assert main(["fold", "one", "two", "--into", "both", "--bank", str(bank), "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"].startswith("the adapter of task 'one' and another one continue each other")
    assert error["unchanged"] == "the bank was not changed"


def test_the_next_adapter_continues_the_folded_one(copy, adapters, lab) -> None:
    bank = copy("isolated", 2)
    fold(bank, "one", "two")
    first, _ = adapters(bank)
    added = lab.add(bank, "three", strategy="seqlora")
    assert added.adapter.metrics["continued_from"] == first.digest


def test_the_command_says_what_was_measured(copy, capsys) -> None:
    bank = copy("isolated", 2)
    words = ["fold", "one", "two", "--into", "both", "--tolerance", "1", "--device", "cpu", "--bank", str(bank)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"folded one, two into both in {bank}" in out
    for word in ("relative_error", "distance", "before", "after", "undo"):
        assert word in out


def test_tasks_of_a_language_model_share_the_zero_adapter(make_lab, texts, tmp_path) -> None:
    """Without heads their bytes are the same."""
    lab = make_lab("llama")
    bank = Path(shutil.copytree(lab.bank("isolated", 3), tmp_path / "bank"))
    fold(bank, *TASKS, max_rank=6)
    first, second, third = ready(bank)
    assert second.digest == third.digest != first.digest
    assert second.context == third.context == (first.digest,)
    assert Bank.open(bank).verify(full=True) == []
    as_one = api.predict(bank, texts, PredictConfig(composition="both", task="three", device="cpu", batch_size=5))
    assert answers(bank, "three", texts) == pytest.approx([one.probability for one in as_one], abs=1e-6)
    added = api.add_task(bank, "four", lab.settings("one", strategy="olora"))
    assert set(added.adapter.context) == {first.digest, second.digest}
    assert Bank.open(bank).verify(full=True) == []
    api.fold(bank, TASKS, "again", FoldConfig(max_rank=1, tolerance=1.0, device="cpu"))
    assert [task.name for task in Bank.open(bank).snapshot().tasks] == ["four", *TASKS]
    assert Bank.open(bank).verify(full=True) == []


def test_what_stands_on_a_removed_task_is_folded_as_a_state(copy, adapters) -> None:
    bank = copy("olora", 3)
    old = adapters(bank)
    api.remove(bank, "one")
    with pytest.raises(IncompatibleError, match="'two' was trained on top of a task that was removed") as refused:
        fold(bank, "two", "three")
    (again,) = refused.value.commands
    assert str(again) == "lorabank fold two three --into both --over states --set weights=three=1"
    fold(bank, "two", "three", over="states", set=("weights=three=1",), max_rank=6)
    new = dense(bank, ready(bank)[0].digest)
    for module, delta in new.items():
        whole = sum(dense(bank, adapter.digest)[module] for adapter in old)
        np.testing.assert_allclose(delta, whole, atol=1e-6)


def test_a_dry_run_measures_what_the_fold_would_and_stores_nothing(copy, capsys) -> None:
    bank = copy("isolated", 2)
    api.compose(bank, ComposeConfig(mode="routed", name="router", device="cpu"))
    before, cells = Bank.open(bank).contents(), len(Bank.open(bank).all_evaluations())
    words = ["fold", "one", "two", "--into", "both", "--tolerance", "1", "--device", "cpu", "--bank", str(bank)]
    assert main([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("would fold one, two into both\n")
    assert said.endswith("\nnothing was changed\n")
    assert (Bank.open(bank).contents(), len(Bank.open(bank).all_evaluations())) == (before, cells)
    assert main([*words, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert plan["dry_run"]
    assert plan["refused"] is None
    assert plan["superseded"] == list(done["superseded"]) == ["router"]
    for name in ("rank", "report", "scores", "bytes_before", "kept"):
        assert plan[name] == done[name], name


def test_a_dry_run_refuses_a_name_that_is_taken(copy) -> None:
    bank = copy("isolated", 2)
    for name, what in (("one", "task"), ("router", "composition")):
        api.compose(bank, ComposeConfig(mode="routed", name="router", replace=True, device="cpu"))
        with pytest.raises(ExistsError, match=f"the bank has a {what} '{name}' already"):
            api.plan_fold(bank, ("one", "two"), name, FoldConfig(device="cpu"))


def test_what_a_merger_lacks_is_mended_by_a_fold(make_lab, tmp_path) -> None:
    """Not by a composition, whose options a fold does not have."""
    lab = make_lab("bert")
    bank = tmp_path / "bank"
    for task in TASKS[:2]:
        lab.add(bank, task, strategy="isolated", keep_samples=0)
    with pytest.raises(NotFoundError, match="which the merger fisher is fitted on") as caught:
        fold(bank, "one", "two", merger="fisher")
    assert "--tasks" not in caught.value.hint
    assert list(caught.value.commands) == [Command("fold", "one", "two", "--into", "both")]
