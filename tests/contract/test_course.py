"""What a training is told and tells: held-out rows, the kept step, its curve, packed rows, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.data.loading import load_task_data
from lorabank.models.facts.curves import ROLE, LearningCurve
from tests.contract.conftest import Lab, write_task


class Told(SilentObserver):
    """Keeps notices; Ctrl-C after some steps when asked to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notices: list[str] = []
        self._stop_after = stop_after

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def advance(self, done: int, values: object) -> None:
        if done == self._stop_after:
            raise KeyboardInterrupt


STOPPING = {"epochs": 12, "early_stopping": 2, "held_fraction": 0.25, "save_steps": 2, "learning_rate": 0.05}


def rows(bank: Path, task: str, split: str) -> int:
    datasets = api.show(bank, task)["datasets"]
    return next(int(one["rows"]) for one in datasets if one["split"] == split)


@pytest.fixture(params=["bert", "llama", "t5"])
def any_lab(request: pytest.FixtureRequest, make_lab: Any) -> Lab:
    lab: Lab = make_lab(request.param)
    return lab


@pytest.mark.by_turns
def test_the_rows_are_held_out_of_the_training_file_alone(any_lab: Lab, tmp_path: Path) -> None:
    told, bank = Told(), tmp_path / "bank"
    added = any_lab.add(bank, "one", told, **STOPPING)
    plain = any_lab.add(tmp_path / "plain", "one", epochs=1)
    curve = LearningCurve.of(api.show(bank, "one")["curve"])
    held = curve.held
    assert held is not None
    assert rows(bank, "one", "eval") == rows(tmp_path / "plain", "one", "eval")
    assert held.rows + rows(bank, "one", "train") == rows(tmp_path / "plain", "one", "train")
    counted = f"{held.rows} of {held.rows + rows(bank, 'one', 'train')} training rows are held out (seed 0)"
    assert any(notice.startswith(counted) for notice in told.notices)
    assert added.adapter.metrics["best_step"] == held.best
    assert held.lowest == min(held.losses)
    assert LearningCurve.from_bytes(Bank.open(bank).read_blob(added.adapter.objects[ROLE])) == curve
    assert api.show(tmp_path / "plain", "one")["curve"]["held"] is None
    assert plain.adapter.metrics.get("best_step") is None


@pytest.mark.by_turns
def test_a_killed_training_keeps_the_same_step_and_curve(any_lab: Lab, tmp_path: Path) -> None:
    whole = any_lab.add(tmp_path / "whole", "one", **STOPPING)
    bank = tmp_path / "bank"
    with pytest.raises(KeyboardInterrupt):
        any_lab.add(bank, "one", Told(stop_after=5), **STOPPING)
    resumed = api.add_task(bank, "one", None, resume=True)
    assert resumed.adapter.digest == whole.adapter.digest
    assert dict(resumed.adapter.objects) == dict(whole.adapter.objects)
    assert resumed.adapter.metrics == whole.adapter.metrics


def test_a_checkpoint_of_an_older_version_is_resumed(make_lab: Any, tmp_path: Path) -> None:
    """It has neither what an optimizer remembers beside tensors, nor a curve."""
    from lorabank.training.checkpoints import _MANIFEST

    lab, settings = make_lab("bert"), {"save_steps": 2}
    whole = lab.add(tmp_path / "whole", "one", **settings)
    bank = tmp_path / "bank"
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "one", Told(stop_after=3), **settings)
    (checkpoint,) = bank.glob("work/*/checkpoint-2")
    manifest = json.loads((checkpoint / _MANIFEST).read_text())
    for name in ("optimizer_state.json", "course.json"):
        (checkpoint / name).unlink()
        del manifest[name]
    (checkpoint / _MANIFEST).write_text(json.dumps(manifest))
    (operation,) = bank.glob("work/*")
    assert checkpoint.parent == operation
    resumed = api.add_task(bank, "one", None, resume=True)
    assert resumed.adapter.digest == whole.adapter.digest
    assert api.show(bank, "one")["curve"]["steps"] == tuple(range(3, whole.adapter.steps + 1))


def test_the_dry_run_counts_them(make_lab: Any, tmp_path: Path) -> None:
    lab = make_lab("bert")
    plan = api.plan_task(tmp_path / "bank", "one", lab.settings("one"), api_init(lab))
    assert (plan.held_rows, plan.packs) == (None, None)
    held = api.plan_task(tmp_path / "bank", "one", lab.settings("one", **STOPPING), api_init(lab))
    assert held.held_rows == plan.train_rows - held.train_rows > 0


def test_too_few_rows_to_hold_some_out_are_refused(make_lab: Any, tmp_path: Path) -> None:
    lab = make_lab("bert")
    file = tmp_path / "few.jsonl"
    cells = [(f"{letter} {label}", label) for letter in "ab" for label in "xy"]
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in cells))
    with pytest.raises(DataError, match="too few training rows to hold some out") as caught:
        lab.add(tmp_path / "bank", "one", data=str(file), **STOPPING)
    assert caught.value.hint == "leave out --eval-every and --early-stopping"
    assert not (tmp_path / "bank").exists()


def test_the_held_out_rows_are_part_of_the_same_run(make_lab: Any, tmp_path: Path) -> None:
    lab, bank = make_lab("bert"), tmp_path / "bank"
    file = write_task(tmp_path / "rows.jsonl", 2, seed=5)
    settings = lab.settings("one", data=str(file), **STOPPING)
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "one", Told(stop_after=3), data=str(file), **STOPPING)
    before, whole = load_task_data(settings, labelled=True), file.read_text()
    assert before.held is not None
    for letter in "abcdefghijklmnopqrstuvwxyz":  # until the changed row is held out again
        file.write_text(
            whole.replace(json.dumps(before.held.texts[0]), json.dumps(f"{before.held.texts[0]} {letter}"))
        )
        now = load_task_data(settings, labelled=True)
        if (now.train.sha256, now.eval.sha256) == (before.train.sha256, before.eval.sha256):
            break
    else:
        pytest.fail("no such row")
    with pytest.raises(DataError, match="no longer what the interrupted run was trained on") as caught:
        api.add_task(bank, "one", None, resume=True)
    assert caught.value.unchanged == "the interrupted run is still there"
    file.write_text(whole)
    assert api.add_task(bank, "one", None, resume=True).adapter.metrics["rows_held_out"] == len(before.held)


# ------------------------------------------------------------------------------------------- packing and weights


def test_a_packed_task_is_learnt_in_fewer_sequences(make_lab: Any, tmp_path: Path) -> None:
    lab = make_lab("llama")
    plan = api.plan_task(tmp_path / "none", "one", lab.settings("one", packing=True), api_init(lab))
    added = lab.add(tmp_path / "bank", "one", packing=True)
    alone = lab.add(tmp_path / "alone", "one")
    assert added.adapter.metrics["packs"] == plan.packs < rows(tmp_path / "bank", "one", "train")
    assert added.adapter.steps == plan.steps < alone.adapter.steps
    again = lab.add(tmp_path / "again", "one", packing=True)
    assert again.adapter.digest == added.adapter.digest


def test_the_dry_run_packs_the_rows_that_are_trained_on_again(make_lab: Any, tmp_path: Path) -> None:
    lab, bank, told = make_lab("llama"), tmp_path / "bank", Told()
    settings = {"strategy": "replay", "packing": True, "max_length": 64}
    lab.add(bank, "one", max_steps=1, **settings)
    plan = api.plan_task(bank, "two", lab.settings("two", **settings))
    added = lab.add(bank, "two", told, **settings)
    assert added.adapter.metrics["rows_replayed"] > 0
    assert (added.adapter.metrics["packs"], added.adapter.steps) == (plan.packs, plan.steps)
    assert plan.few_steps in told.notices
    alone = api.plan_task(bank, "two", lab.settings("two", **(settings | {"strategy": "olora"})))
    assert alone.packs < plan.packs


def test_a_saving_is_not_packed_with(make_lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--packing keeps the loss of each row") as caught:
        make_lab("llama").add(tmp_path / "bank", "one", packing=True, savings=("gradient-checkpointing",), data="none")
    assert caught.value.hint == "leave --packing or --saving out"
    assert not (tmp_path / "bank").exists()


def test_a_warm_up_as_long_as_the_training_is_refused(make_lab: Any, tmp_path: Path) -> None:
    lab, bank = make_lab("bert"), tmp_path / "bank"
    for act in (
        lab.add,
        lambda path, name, **more: api.plan_task(path, name, lab.settings(name, **more), api_init(lab)),
    ):
        with pytest.raises(ConfigError, match=r"^--warmup 100 takes 100 steps, and the training has 6:") as caught:
            act(bank, "one", warmup=100)
        assert caught.value.unchanged == "nothing was changed"
    assert not bank.exists()


def api_init(lab: Lab) -> Any:
    from lorabank.core.config import InitConfig

    return InitConfig(base=str(lab.base))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert", {"packing": True}, "--packing is for causal language models"),
        ("t5", {"packing": True}, "--packing is for causal language models"),
        ("llama", {"class_weights": "balanced"}, "--class-weights is for classifiers"),
    ],
)
def test_what_means_nothing_for_the_model_is_refused(make_lab, tmp_path, kind, settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_lab(kind).add(tmp_path / "bank", "one", **settings)
    assert caught.value.unchanged == "nothing was changed"


@pytest.mark.parametrize("strategy", ["lwf", "der", "olora-distil"])
def test_a_loss_of_single_rows_is_not_packed(make_lab, tmp_path, strategy: str) -> None:
    lab, bank = make_lab("llama"), tmp_path / "bank"
    lab.add(bank, "one", strategy=strategy, packing=True, max_steps=1)  # there is nothing to compare with yet
    nowhere = {"strategy": strategy, "packing": True, "data": str(tmp_path / "nowhere.jsonl")}  # no row is read
    refused = f"strategy '{strategy}' computes the loss of single rows"
    with pytest.raises(ConfigError, match=refused):
        lab.add(bank, "two", **nowhere)
    with pytest.raises(ConfigError, match=refused):
        api.plan_task(bank, "two", lab.settings("two", **nowhere))
    assert [task.name for task in Bank.open(bank).snapshot().tasks] == ["one"]


def test_rare_labels_are_learnt_with_weights(make_lab: Any, tmp_path: Path) -> None:
    """One label of ten rows in sixty: without weights it is answered less often."""
    lab = make_lab("bert")
    lines = write_task(tmp_path / "all.jsonl", 2, seed=3, rows=100).read_text().splitlines()
    kept = [line for i, line in enumerate(lines) if i % 2 == 0 or i % 10 == 1]
    (tmp_path / "rare.jsonl").write_text("\n".join(kept) + "\n")
    found = {}
    for weights in ("none", "balanced"):
        added = lab.add(
            tmp_path / weights,
            "one",
            data=str(tmp_path / "rare.jsonl"),
            class_weights=weights,
            epochs=4,
            learning_rate=0.05,
        )
        scores = {one.label: one for one in added.score["labels"].labels}
        found[weights] = scores["part1"].answered
    assert found["none"] == 0
    assert found["balanced"] > 0


# ------------------------------------------------------------------------------------------------- what is shown


def test_the_report_draws_each_training(make_lab: Any, tmp_path: Path) -> None:
    lab, bank = make_lab("bert"), tmp_path / "bank"
    lab.add(bank, "one", **STOPPING)
    lab.add(bank, "two")
    page = api.report(bank, tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<figcaption>(\w+): loss from", page) == ["one", "two"]
    drawn = api.save_curve(bank, "one", tmp_path / "one.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    api.compose(bank, ComposeConfig(mode="merged", name="both", device="cpu"))
    with pytest.raises(NotFoundError, match="no training of 'both' is recorded"):
        api.save_curve(bank, "both", tmp_path / "both.png")
    assert not (tmp_path / "both.png").exists()
