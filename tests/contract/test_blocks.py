"""Query and value of GPT-2's fused, transposed matrix: every strategy, plain PEFT out and in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError
from tests.unit.workflows.conftest import write_rows
from tests.unit.workflows.language_models import CLOSE, add, bank_logits, own_state, peft_logits

D, R = 32, 2
LABELS = {"one": ("no", "yes"), "two": ("one", "three", "two")}
QV = "c_attn.q,c_attn.v"


@pytest.fixture
def base(make_language_model: Callable[..., Path]) -> Path:
    return make_language_model("gpt2", initializer_range=0.2)


def fill(bank: Path, base: Path, **config: Any) -> Path:
    for seed, (task, labels) in enumerate(LABELS.items()):
        add(bank, base, task, labels, seed, **({"r": R, "lora_alpha": 4.0, "target_modules": QV} | config))
    return bank


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("rslora", [False, True])
def test_two_tasks_on_blocks_are_plain_peft_on_the_whole_matrix(base: Path, tmp_path: Path, rslora: bool) -> None:
    bank = fill(tmp_path / "bank", base, use_rslora=rslora)
    api.compose(bank, ComposeConfig(mode="manual", weights="one=0.5,two=-1", name="both", device="cpu"))
    states = {"one": own_state(bank, "one"), "two": own_state(bank, "two")}
    first, second = (Bank.open(bank).snapshot().adapter_of(task).digest for task in LABELS)
    states["both"] = {first: 0.5, second: -1.0}
    for name, state in states.items():
        api.export(bank, name, tmp_path / name, state="learnt" if name in LABELS else None)
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["fan_in_fan_out"] is True
        for key, value in tensors(tmp_path / name).items():
            assert "c_attn.lora_" in key
            assert value.shape[key.endswith("lora_B.weight")] % (2 * R) == 0
            if key.endswith("lora_B.weight"):
                assert value.shape[0] == 3 * D
                assert not value[D : 2 * D].any()
                assert value[:D].any()
                assert value[2 * D :].any()
        for mine, theirs in zip(bank_logits(bank, state), peft_logits(base, tmp_path / name), strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)


def test_what_was_exported_comes_back(base: Path, tmp_path: Path) -> None:
    bank = fill(tmp_path / "bank", base, strategy="isolated")
    api.export(bank, "two", tmp_path / "two", own=True)
    data = write_rows(tmp_path / "guest.jsonl", LABELS["two"], rows=30, seed=5)
    guest = tmp_path / "guest"
    config = TrainConfig(data=str(data), device="cpu", set=("prompt_template={text}:",))
    api.import_adapter(guest, tmp_path / "two", "guest", config=config, init=InitConfig(base=str(base)))
    pairs = zip(bank_logits(bank, own_state(bank, "two")), bank_logits(guest, own_state(guest, "guest")), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.by_turns
@pytest.mark.parametrize("strategy", ["olora-projected", "seqlora", "ewc", "inflora"])
def test_every_strategy_leaves_the_key_alone(base: Path, tmp_path: Path, strategy: str) -> None:
    bank = fill(tmp_path / "bank", base, strategy=strategy)
    snapshot = Bank.open(bank).snapshot()
    found = [tensors(Bank.open(bank).verified_adapter(snapshot.adapter_of(task).digest)) for task in LABELS]
    for adapter in found:
        assert not any(value[D : 2 * D].any() for key, value in adapter.items() if key.endswith("lora_B.weight"))
    if strategy == "olora-projected":
        for key in found[0]:
            if key.endswith("lora_A.weight"):  # the query's rows come first; each block has its own past
                for rows in (slice(0, R), slice(R, 2 * R)):
                    assert float((found[0][key][rows] @ found[1][key][rows].T).abs().max()) < 1e-6


def test_a_strategy_that_weighs_whole_matrices_refuses_blocks(base: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    add(bank, base, "one", LABELS["one"], 0, r=R, target_modules=QV, strategy="amlora")
    with pytest.raises(ConfigError, match=r"whole matrices; .*c_attn\.q is a block") as error:
        add(bank, base, "two", LABELS["two"], 1, r=R, target_modules=QV, strategy="amlora")
    assert error.value.hint == "--target-modules c_attn"


def test_a_continued_adapter_goes_on_with_the_same_blocks(base: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    add(bank, base, "one", LABELS["one"], 0, r=R, target_modules=QV, strategy="seqlora")
    whole = Path(shutil.copytree(bank, tmp_path / "whole"))
    for other in ("c_attn.q,c_attn.k", "c_attn.q"):
        with pytest.raises(ConfigError, match="adapts other modules than --target-modules"):
            add(whole, base, "two", LABELS["two"], 1, r=R, target_modules=other, strategy="seqlora")
