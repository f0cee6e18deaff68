"""A task enters a bank whole or not at all, and a run that was interrupted ends as if it had not been."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.errors import ConfigError, DataError, DivergedError, ExistsError, NotFoundError
from lorabank.core.observer import SilentObserver

STEPS = {"epochs": 4, "save_steps": 3}
"""12 steps, checkpoints after 3, 6, 9 and 12."""


class Stop(SilentObserver):
    """Ctrl-C after some steps of training."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.steps = 0

    def advance(self, done: int, values: object) -> None:
        self.steps += 1
        if done == self.after:
            raise KeyboardInterrupt


def files(bank: Path) -> set[str]:
    kept = ("adapters", "blobs", "work", "staging")
    return {str(file.relative_to(bank)) for part in kept for file in (bank / part).rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(lab, tmp_path_factory) -> str:
    """Digest of the second task, trained in one go."""
    bank = Path(shutil.copytree(lab.bank("olora", 1), tmp_path_factory.mktemp("whole") / "bank"))
    return lab.add(bank, "two", **STEPS).adapter.digest


@pytest.fixture
def interrupted(lab, copy) -> Path:
    """A bank whose second task was stopped after 10 of 12 steps."""
    bank = copy("olora", 1)
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", Stop(10), **STEPS)
    return bank


def test_the_same_settings_give_the_same_digest(lab, copy, uninterrupted: str) -> None:
    assert lab.add(copy("olora", 1), "two", **STEPS).adapter.digest == uninterrupted


@pytest.mark.parametrize("again", [False, True], ids=["stored settings", "settings given again"])
def test_a_resumed_task_has_the_same_digest(lab, interrupted: Path, uninterrupted: str, again: bool) -> None:
    observer = Stop(-1)
    config = lab.settings("two", **STEPS) if again else None
    result = api.add_task(interrupted, "two", config, resume=True, observer=observer)
    assert result.adapter.digest == uninterrupted
    assert observer.steps == 3 + 1  # steps 10 to 12, and the score
    assert Bank.open(interrupted).verify(full=True) == []
    assert not any((interrupted / "work").iterdir())


def test_a_damaged_checkpoint_costs_its_steps_only(interrupted: Path, uninterrupted: str) -> None:
    (newest,) = (interrupted / "work").rglob("checkpoint-9")
    with open(newest / "optimizer.safetensors", "ab") as file:
        file.write(b"?")
    observer = Stop(-1)
    assert api.add_task(interrupted, "two", None, resume=True, observer=observer).adapter.digest == uninterrupted
    assert observer.steps == 6 + 1


def test_an_interrupted_task_is_not_there_but_keeps_its_name(lab, interrupted: Path) -> None:
    assert [task.name for task in Bank.open(interrupted).snapshot().tasks] == ["one"]
    assert api.resumable(interrupted) == ("two",)
    with pytest.raises(ExistsError, match="has checkpoints") as caught:
        lab.add(interrupted, "two", **STEPS)
    assert caught.value.commands == (("add-task", "two", "--resume"),)


def test_other_settings_cannot_be_resumed(lab, interrupted: Path) -> None:
    with pytest.raises(ConfigError, match="learning_rate differ"):
        api.add_task(interrupted, "two", lab.settings("two", **STEPS, learning_rate=0.5), resume=True)


def test_other_rows_cannot_be_resumed(lab, copy, tmp_path: Path) -> None:
    data = Path(shutil.copy(lab.data("two"), tmp_path / "rows.jsonl"))
    bank = copy("olora", 1)
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", Stop(10), **STEPS, data=str(data))
    data.write_text(data.read_text(encoding="utf-8") + '{"text": "a b c", "label": "part0"}\n')
    with pytest.raises(DataError, match="no longer what the interrupted run was trained on") as caught:
        api.add_task(bank, "two", None, resume=True)
    (words,) = caught.value.commands
    assert words[:3] == ("add-task", "two", "--restart")
    assert words[words.index("--data") + 1] == str(data)
    assert words[words.index("--save-steps") + 1] == str(STEPS["save_steps"])


def test_restart_begins_anew(lab, interrupted: Path, uninterrupted: str) -> None:
    observer = Stop(-1)
    result = api.add_task(interrupted, "two", lab.settings("two", **STEPS), restart=True, observer=observer)
    assert result.adapter.digest == uninterrupted
    assert observer.steps == 12 + 1


def test_there_must_be_something_to_resume(copy) -> None:
    with pytest.raises(NotFoundError, match="no interrupted add-task"):
        api.add_task(copy("olora", 1), "two", None, resume=True)


@pytest.mark.parametrize("save_steps", [1, 50])
def test_a_diverged_run_leaves_nothing(lab, copy, save_steps: int) -> None:
    bank = copy("olora", 1)
    before, snapshot = files(bank), Bank.open(bank).snapshot()
    with pytest.raises(DivergedError, match="diverged at step 2") as caught:
        lab.add(bank, "two", learning_rate=1e30, save_steps=save_steps)
    assert caught.value.exit_code == 11
    assert files(bank) == before
    assert Bank.open(bank).snapshot() == snapshot
    assert Bank.open(bank).operations() == []
    lab.add(bank, "two")  # the hint can be followed: the name is free


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing(lab, copy) -> None:
    bank = copy("olora", 1)
    before = files(bank)
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", Stop(2), **STEPS)
    assert files(bank) == before
    assert Bank.open(bank).operations() == []
    assert api.resumable(bank) == api.resumable(bank / "none") == ()


def test_a_name_that_is_taken_is_refused_before_training(lab, copy) -> None:
    observer = Stop(1)
    with pytest.raises(ExistsError, match="'one' already"):
        lab.add(copy("olora", 1), "one", observer)
    assert observer.steps == 0


def test_the_plan_is_what_happens(lab, copy) -> None:
    from lorabank.core.config import InitConfig

    bank = copy("olora", 1)
    before = files(bank)
    plan = api.plan_task(bank, "two", lab.settings("two", **STEPS), InitConfig(base=str(lab.base)))
    assert files(bank) == before
    result = lab.add(bank, "two", **STEPS)
    counts = {dataset.split: dataset.rows for dataset in result.datasets}
    assert (plan.train_rows, plan.eval_rows) == (counts["train"], counts["eval"])
    assert plan.labels == result.task.labels
    assert plan.steps == result.adapter.steps
    assert plan.penalty == result.adapter.penalties
    assert plan.context == ("one",)
    base = Bank.open(bank).snapshot().base
    facts = {"chat_template"}  # found in the rows and the base, not set
    recorded = {name: value for name, value in result.adapter.config.items() if name not in facts}
    assert plan.settings == recorded | {
        "map": (),
        "set": (),
        "savings": (),
        "base": base.name,
        "revision": None,
        "task_type": "SEQ_CLS",
        "penalty": "orthogonal",
        "penalty_weight": 0.5,
        "target_modules": "query,value",
    }
    # four bytes a parameter, and a few hundred for names
    assert 0 < result.adapter.bytes - plan.adapter_bytes < 4096
