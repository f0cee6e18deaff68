"""``add-task`` in several processes: the adapter of one process, one change of the bank, one voice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.models.facts.curves import LearningCurve
from lorabank.workflows.assemble import read_stack

pytestmark = pytest.mark.end_to_end

SETTINGS: dict[str, Any] = {
    "batch_size": 7,  # 19 rows: 7, 7 and 5, and each process has 4 or 3 of 7
    "gradient_accumulation_steps": 2,
    "epochs": 2,
    "r": 2,
    "device": "cpu",
    "lora_dropout": 0.0,
    "set": [f"{name}.replay_rows=6" for name in ("replay", "der", "gem", "agem", "olora-distil")],
}
WORDS = [
    word
    for name, value in SETTINGS.items()
    for one in (value if isinstance(value, list) else [value])
    for word in (f"--{name.replace('_', '-')}", str(one))
]

REHEARSED = ("olora-distil", "der", "lwf", "gem", "agem", "si", "mas", "slao")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> Path:
    """A base without dropout, which would be another in each process."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return save_base(tmp_path_factory.mktemp("still") / "tiny", **none)


def add(bank: Path, name: str, data: Path, base: Path, **changes: Any) -> None:
    api.add_task(bank, name, TrainConfig(data=str(data), **SETTINGS | changes), init=InitConfig(base=str(base)))


def words(bank: Path, name: str, *more: str) -> tuple[str, ...]:
    return ("-m", "lorabank_cli", "--bank", str(bank), "add-task", name, *more)


def assert_same_adapters(one: Path, several: Path) -> None:
    ours, theirs = (Bank.open(path) for path in (one, several))
    adapters = [[bank.snapshot().adapter_of(task.name) for task in bank.snapshot().tasks] for bank in (ours, theirs)]
    assert [adapter.steps for adapter in adapters[0]] == [adapter.steps for adapter in adapters[1]]
    expected, found = read_stack(ours, adapters[0]), read_stack(theirs, adapters[1])
    assert expected is not None
    assert found is not None
    for name, factors in expected.modules.items():
        torch.testing.assert_close(found.modules[name].A, factors.A, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.modules[name].B, factors.B, rtol=0, atol=1e-5)
    for old, new in zip(*adapters, strict=True):
        for metric, value in old.metrics.items():
            if metric.startswith("final_"):
                assert new.metrics[metric] == pytest.approx(value, abs=1e-4)


def test_two_processes_train_the_adapter_of_one(launch, still: Path, data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for bank in (one, two):
        add(bank, "first", data, still)
    add(one, "second", data, still, seed=1)
    main, other = launch(2, *words(two, "second", "--data", str(data), "--seed", "1", *WORDS))
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    assert main.stdout.startswith("added task second (number 2)")
    assert "training (olora): 4/4" in main.stderr
    assert (other.stdout, other.stderr) == ("", "")
    assert Bank.open(two).verify(full=True) == []
    assert len(list((two / "adapters").iterdir())) == len(list((one / "adapters").iterdir()))
    assert list((two / "work").iterdir()) == []
    assert_same_adapters(one, two)


@pytest.mark.slow
def test_two_processes_train_the_layers_of_hydralora(launch, still: Path, data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    chosen = {"strategy": "isolated", "variant": "hydralora", "learning_rate": 1e-3}
    add(one, "first", data, still, **chosen)
    given = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = launch(2, *words(two, "first", "--data", str(data), "--base", str(still), *WORDS, *given))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    files = [next((bank / "adapters").glob("*/adapter_model.safetensors")) for bank in (one, two)]
    expected, found = map(load_file, files)
    assert expected.keys() == found.keys()
    assert any(key.endswith(".hydra_router") for key in found)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_the_biases_of_one(launch, still: Path, data: Path, tmp_path: Path) -> None:
    """Without those of keys, which softmax does not see: their gradients are roundings, that AdamW makes steps of."""
    one, two = tmp_path / "one", tmp_path / "two"
    seen = "query,value,dense,LayerNorm"
    add(one, "first", data, still, variant="bitfit", strategy="inclora", target_modules=seen)
    given = ("--variant", "bitfit", "--strategy", "inclora", "--target-modules", seen)
    done = launch(2, *words(two, "first", "--data", str(data), "--base", str(still), *WORDS, *given))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_same_adapters(one, two)


@pytest.mark.slow
def test_two_processes_keep_the_step_that_one_keeps(launch, still: Path, data: Path, tmp_path: Path) -> None:
    """Held-out rows, weights of labels, and an optimizer whose memory is more than tensors."""
    one, two = tmp_path / "one", tmp_path / "two"
    chosen = {"eval_every": 1, "early_stopping": 1, "held_fraction": 0.3, "class_weights": "balanced"}
    chosen |= {"optimizer": "adafactor", "warmup": 2.0, "epochs": 6, "learning_rate": 0.05}
    add(one, "first", data, still, **chosen)
    given = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = launch(2, *words(two, "first", "--data", str(data), "--base", str(still), *WORDS, *given))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_same_adapters(one, two)
    ours, theirs = (LearningCurve.of(api.show(bank, "first")["curve"]) for bank in (one, two))
    assert (ours.held.best, ours.held.stopped, ours.held.steps) == (
        theirs.held.best,
        theirs.held.stopped,
        theirs.held.steps,
    )
    assert theirs.held.losses == pytest.approx(ours.held.losses, abs=1e-5)
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-4)


@pytest.mark.slow
def test_two_processes_share_packed_sequences(launch, save_language_model, tmp_path: Path) -> None:
    base = save_language_model(tmp_path / "base")
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{i} plus {i}", "completion": str(2 * i)}) for i in range(30)]
    file.write_text("\n".join(lines) + "\n")
    one, two = tmp_path / "one", tmp_path / "two"
    chosen = {"packing": True, "max_length": 64, "batch_size": 3}
    add(one, "sums", file, base, **chosen)
    given = ("--packing", "--max-length", "64", "--batch-size", "3")
    done = launch(2, *words(two, "sums", "--data", str(file), "--base", str(base), *WORDS, *given))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_same_adapters(one, two)


def test_an_error_is_told_once_and_ends_all_with_its_code(launch, still: Path, tmp_path: Path) -> None:
    missing = launch(2, *words(tmp_path / "bank", "spam", "--data", "nothing.jsonl", "--base", str(still)))
    assert [process.returncode for process in missing] == [3, 3]
    assert "".join(process.stderr for process in missing).count("error: no such file: 'nothing.jsonl'") == 1
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("command", [("list",), ("eval", "--all")])
def test_other_commands_are_the_work_of_one_process(launch, tmp_path: Path, command: tuple[str, ...]) -> None:
    main, other = launch(2, "-m", "lorabank_cli", "--bank", str(tmp_path / "bank"), *command)
    assert (main.returncode, other.returncode) == (2, 2)
    assert main.stderr.startswith(f"error: lorabank {command[0]} runs in one process, not in 2\n")
    assert (main.stdout, other.stdout, other.stderr) == ("", "", "")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["amlora", "inflora", "ewc", "replay", "joint", *REHEARSED])
def test_every_method_is_the_same_in_two_processes(launch, still: Path, data: Path, tmp_path: Path, strategy) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for bank in (one, two):
        add(bank, "first", data, still, strategy=strategy)
    add(one, "second", data, still, strategy=strategy, seed=1)
    given = ("--data", str(data), "--seed", "1", "--strategy", strategy, *WORDS)
    done = launch(2, *words(two, "second", *given))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_same_adapters(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--variant", "dora"),
        ("--variant", "adalora"),
        ("--variant", "lora-fa"),
        ("--variant", "vb-lora"),
        ("--variant", "lora-drop"),
        ("--strategy", "olora-projected"),
        ("--start", "pissa"),
        ("--start", "eva"),
        ("--start", "corda"),
        ("--start", "lora-ga"),
        ("--saving", "gradient-checkpointing"),
        *(("--variant", name) for name in ("relora", "xgblora", "delta-lora", "galore", "flora", "bilora")),
    ],
    ids=lambda more: more[1],
)
def test_so_is_what_is_trained_beside_the_factors(launch, still: Path, data: Path, tmp_path: Path, more) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for bank in (one, two):
        add(bank, "first", data, still)
    name, value = more[0].removeprefix("--"), more[1]
    add(one, "second", data, still, seed=1, **{"savings": (value,)} if name == "saving" else {name: value})
    done = launch(2, *words(two, "second", "--data", str(data), "--seed", "1", *more, *WORDS))
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_same_adapters(one, two)


@pytest.mark.slow
def test_accelerate_launches_it_too(still: Path, data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for bank in (one, two):
        add(bank, "first", data, still)
    add(one, "second", data, still, seed=1)
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num-processes", "2", "--num-machines", "1"]
    launcher += ["--mixed-precision", "no", "--dynamo-backend", "no"]
    command = [sys.executable, *launcher, *words(two, "second", "--data", str(data), "--seed", "1", *WORDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("added task second") == 1
    assert_same_adapters(one, two)


def lives(pid: int) -> bool:
    """Whether a process runs that is nobody's child here; a dead one may not be buried yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_killed_processes_resume_to_the_same_adapter(base: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LORABANK_ADD_TASK_R", "2")  # torchrun takes --r for one of its own options
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ("--save-steps", "1", "--batch-size", "7", "--epochs", "3", "--device", "cpu")
    given = ("--data", str(data), "--base", str(base), *settings)
    whole, bank = tmp_path / "whole", tmp_path / "bank"
    subprocess.run([*launcher, *words(whole, "letters", *given)], check=True, capture_output=True, timeout=240)

    process = subprocess.Popen(
        [*launcher, *words(bank, "letters", *given)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not list(bank.glob("work/*/checkpoint-1")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    # the launcher gives each of its processes a session of its own
    trainers = [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    ]
    assert len(trainers) == 2
    for pid in (process.pid, *trainers):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(lives(pid) for pid in trainers):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert Bank.open(bank).snapshot().tasks == ()

    subprocess.run([*launcher, *words(bank, "letters", "--resume")], check=True, capture_output=True, timeout=240)
    digests = [Bank.open(path).snapshot().adapter_of("letters").digest for path in (whole, bank)]
    assert digests[0] == digests[1]
