"""``add-task --resume`` in the very past that the run began in, or not at all, whatever the strategy."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_tensors

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DamagedError, IncompatibleError, MissingExtraError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import AdapterRecord
from lorabank.core.shelves import STRATEGIES
from lorabank.training.checkpoints import read_tensors
from lorabank.training.optimizers.adamw import AdamW
from lorabank.workflows.learning import train
from tests.contract.conftest import Lab

STEPS = {"save_steps": 2}
"""6 steps or more, a checkpoint after every second one."""


class Stop(SilentObserver):
    """Ctrl-C after three steps of training, when a checkpoint of the second one is there."""

    def advance(self, done: int, values: object) -> None:
        if done == 3:
            raise KeyboardInterrupt


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stop(lab: Lab, bank: Path, task: str, strategy: str) -> Path:
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, task, Stop(), strategy=strategy, **STEPS)
    assert [step.name for step in bank.glob("work/*/checkpoint-*")] == ["checkpoint-2"]
    return bank


@pytest.fixture
def stopped(lab: Lab, copy: Callable[[str, int], Path], strategy: str, tmp_path: Path) -> Callable[[str], Path]:
    """``stopped(name)``: a bank of its own in which ``two`` was interrupted on top of ``one``."""
    start = stop(lab, copy(strategy, 1), "two", strategy)
    return lambda name: Path(shutil.copytree(start, tmp_path / name))


def learnt(record: AdapterRecord) -> tuple[object, ...]:
    """Every byte that a training leaves, by digest, and what it says of its past."""
    return (
        record.digest,
        record.head_digest,
        dict(record.objects),
        record.context,
        record.metrics.get("continued_from"),
    )


def refused(bank: Path, match: str) -> None:
    with pytest.raises(IncompatibleError, match=match) as caught:
        api.add_task(bank, "two", None, resume=True)
    assert caught.value.exit_code == 5
    assert caught.value.unchanged == "the interrupted run is still there"
    assert caught.value.commands[0][:4] == ("add-task", "two", "--restart", "--data")
    assert api.resumable(bank) == ("two",)
    assert list(bank.glob("work/*/checkpoint-2/trainable.safetensors"))


@pytest.mark.by_turns
def test_a_run_is_resumed_in_its_own_past_alone(lab, stopped, strategy: str) -> None:
    """A task is added and removed again, and an earlier one is removed and added again."""
    whole = learnt(Bank.open(lab.bank(strategy, 2)).snapshot().adapter_of("two"))
    assert learnt(api.add_task(stopped("still"), "two", None, resume=True).adapter) == whole

    added = stopped("added")
    lab.add(added, "three", strategy=strategy)
    refused(added, "it began after one, and now there is one, three")
    api.remove(added, "three")  # it was drawn with the number that the run began with
    refused(added, "it began as task number 2, and the next one is number 3")

    removed = stopped("removed")
    api.remove(removed, "one")
    refused(removed, "it began after one, and now there is no task")
    lab.add(removed, "one", strategy=strategy)  # inflora takes its A from the rows and not from a number
    refused(removed, "one had another adapter when it began|it began as task number 2, and the next one is number 3")


def test_after_a_refusal_the_hint_begins_anew(lab, copy) -> None:
    bank = stop(lab, copy("seqlora", 1), "two", "seqlora")
    lab.add(bank, "three", strategy="seqlora")
    with pytest.raises(IncompatibleError) as caught:
        api.add_task(bank, "two", lab.settings("two", strategy="seqlora", **STEPS), resume=True)
    assert " --strategy seqlora " in str(caught.value.commands[0])
    result = api.add_task(bank, "two", lab.settings("two", strategy="seqlora", **STEPS), restart=True)
    third = Bank.open(bank).snapshot().adapter_of("three").digest
    assert result.adapter.metrics["continued_from"] == third


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reservations as versions made them that knew nothing of the past."""

    def stored(config: TrainConfig, data: train.TaskData, past: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in sound(config, data, past).items() if key != "past"}

    sound = train._stored
    monkeypatch.setattr(train, "_stored", stored)


def test_a_run_without_a_record_of_its_past_is_not_trusted(lab, copy, unrecorded) -> None:
    bank = stop(lab, copy("olora", 1), "two", "olora")
    refused(bank, "an earlier version of lorabank began it")


def test_a_run_without_a_record_is_resumed_where_there_never_was_a_past(lab, copy, unrecorded) -> None:
    bank = stop(lab, copy("olora", 0), "one", "olora")
    resumed = api.add_task(bank, "one", None, resume=True).adapter
    assert learnt(resumed) == learnt(Bank.open(lab.bank("olora", 1)).snapshot().adapter_of("one"))
    other = stop(lab, Path(shutil.copytree(lab.bank("olora", 0), bank.with_name("other"))), "two", "olora")
    lab.add(other, "one")
    api.remove(other, "one")  # no task is there, but there was one
    refused(other, "an earlier version of lorabank began it")


def test_a_reservation_without_settings_is_damage(lab, copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_stored", lambda *_: {"train": "0" * 64})
    bank = stop(lab, copy("olora", 0), "one", "olora")
    with pytest.raises(DamagedError, match="lacks 'config'"):
        api.add_task(bank, "one", None, resume=True)


def test_a_machine_that_cannot_make_its_steps_refuses_to_resume(lab, copy, monkeypatch) -> None:
    """The settings of the interrupted run are checked as given ones are."""
    bank = stop(lab, copy("olora", 0), "one", "olora")
    gpu = ConfigError("this --optimizer works on a GPU alone", hint="leave --optimizer out")
    monkeypatch.setattr(AdamW, "refusal", lambda self, device: gpu)
    with pytest.raises(ConfigError, match="works on a GPU alone") as caught:
        api.add_task(bank, "one", None, resume=True)
    assert caught.value.unchanged == "the interrupted run is still there"
    assert caught.value.hint == "resume it where it was begun, or begin again with --restart and other settings"
    extra = MissingExtraError("the package is not installed", hint="pip install it")
    monkeypatch.setattr(AdamW, "refusal", lambda self, device: extra)
    with pytest.raises(MissingExtraError) as missing:
        api.add_task(bank, "one", None, resume=True)
    assert missing.value.hint == "pip install it"
    assert api.resumable(bank) == ("one",)


@pytest.mark.parametrize("now", ["renamed", "longer"])
def test_a_checkpoint_of_other_tensors_is_refused(lab, copy, now: str) -> None:
    """One of a version, or of an installed variant, that trained something else."""
    bank = stop(lab, copy("olora", 1), "two", "olora")
    (folder,) = bank.glob("work/*/checkpoint-2")
    tensors = read_tensors(folder, "trainable")
    name = next(name for name in tensors if name.endswith("lora_A"))
    before = tensors.pop(name)
    tensors |= {f"{name}_raw": before} if now == "renamed" else {name: torch.cat([before, before])}
    data = save_tensors(tensors)
    (folder / "trainable.safetensors").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["trainable.safetensors"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(bank, f"checkpoint-2 of the interrupted run does not hold {name}")
