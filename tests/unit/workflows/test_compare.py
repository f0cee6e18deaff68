"""compare: two tasks of a bank, duplicates among them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, NotFoundError


def dense(bank: Path, task: str) -> dict[str, np.ndarray]:
    """``alpha / r B A`` of a task's own adapter, from its PEFT folder."""
    opened = Bank.open(bank)
    folder = opened.adapter_path(opened.snapshot().adapter_of(task).digest)
    config, found = json.loads((folder / "adapter_config.json").read_text()), {}
    root = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in (name for name in tensors if name.endswith("lora_A.weight")):
        A, B = tensors[name].astype(float), tensors[name.replace("lora_A", "lora_B")].astype(float)
        found[name] = config["lora_alpha"] / root * B @ A
    return found


def test_two_tasks_of_a_bank(bank) -> None:
    found = api.compare(bank, "first", "second")
    one, other = dense(bank, "first"), dense(bank, "second")
    inner = sum(float((one[name] * other[name]).sum()) for name in one.keys() & other.keys())
    norms = [sum(float((delta**2).sum()) for delta in each.values()) ** 0.5 for each in (one, other)]
    assert found.details.norms == pytest.approx(norms)
    assert found.interference == pytest.approx(inner / norms[0] / norms[1], abs=1e-9)
    assert found.relation == "different"
    assert len(found.details.modules) == len(one.keys() & other.keys()) == 4
    assert (len(found.only["first"]), found.only["second"]) == (len(one) - 4, ())
    assert found.random_input_overlap == pytest.approx(3 / 32)  # r 3 is the larger rank, 32 inputs
    back = api.compare(bank, "second", "first")
    assert (back.interference, back.input_overlap) == pytest.approx((found.interference, found.input_overlap))


@pytest.mark.parametrize(("turned", "relation"), [(False, "same factors"), (True, "same delta weights")])
def test_a_copy_is_found_though_its_factors_are_rotated(
    bank, rows, tmp_path: Path, turned: bool, relation: str
) -> None:
    api.export(bank, "first", tmp_path / "copy", own=True)
    weights = tmp_path / "copy" / "adapter_model.safetensors"
    tensors, angle = load_file(weights), 0.6
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    for name, tensor in tensors.items():
        if turned and "lora_" in name:
            tensors[name] = turn.T @ tensor if "lora_A" in name else tensor @ turn
    save_file(tensors, weights)
    config = TrainConfig(data=str(rows("copy.jsonl", ("no", "yes"))), device="cpu", max_length=16)
    api.import_adapter(bank, tmp_path / "copy", "copy", config=config)
    found = api.compare(bank, "first", "copy")
    assert found.relation == relation
    assert found.interference == pytest.approx(1)
    assert (found.input_overlap, found.output_overlap) == (pytest.approx(1), pytest.approx(1))


def test_only_two_tasks_are_compared(bank, compose) -> None:
    compose("manual", name="mixed")
    with pytest.raises(ConfigError, match="cannot be compared with itself: 'first'"):
        api.compare(bank, "first", "first")
    for name in ("mixed", "firsts"):
        with pytest.raises(NotFoundError, match=name):
            api.compare(bank, "first", name)
