"""A DoRA adapter that PEFT saved, in a bank, under what is learnt afterwards, and out of it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, TrainConfig
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.core.states import own_state

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
WEIGHTS = "adapter_model.safetensors"
MAGNITUDE = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_magnitude_vector"


@pytest.fixture
def dora_folder(bert_bank: Path, tmp_path: Path) -> Path:
    """Three labels, random factors, and magnitudes away from where they begin."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(bert_bank.parent / "base", num_labels=3)
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4, lora_alpha=6, use_dora=True)
    peft = get_peft_model(model, settings)
    for name, parameter in peft.named_parameters():
        if "lora_magnitude" in name:
            parameter.data.mul_(0.5 + torch.rand(len(parameter)))
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    peft.save_pretrained(tmp_path / "dora")
    return tmp_path / "dora"


def test_it_answers_as_in_peft_and_carries_what_comes_after(
    bank: Path, dora_folder: Path, bring_in: Any, rows: Callable[..., Path], bert_bank, logits, peft_logits, tmp_path
) -> None:
    base = bert_bank.parent / "base"
    adapter = bring_in(dora_folder).adapter
    expected = peft_logits(base, dora_folder, 3)
    torch.testing.assert_close(logits(bank, "guest", {adapter.digest: 1.0}), expected, **CLOSE)
    torch.testing.assert_close(peft_logits(base, bank / "adapters" / adapter.digest, 3), expected, **CLOSE)
    assert api.verify(bank, full=True) == ()
    api.export(bank, "guest", tmp_path / "own", own=True)
    torch.testing.assert_close(peft_logits(base, tmp_path / "own", 3), expected, **CLOSE)
    assert "A DoRA adapter" in (tmp_path / "own" / "README.md").read_text()
    with pytest.raises(IncompatibleError, match="use_dora"):
        api.export(bank, "guest", tmp_path / "served", own=True, check="vllm")

    data = rows("third.jsonl", ("yes", "no"), seed=7)
    config = TrainConfig(data=str(data), epochs=1, batch_size=8, learning_rate=1e-2, device="cpu", max_length=16, r=2)
    third = api.add_task(bank, "third", config).adapter
    assert adapter.digest in third.context
    api.export(bank, "third", tmp_path / "third")
    joined = json.loads((tmp_path / "third" / "adapter_config.json").read_text())
    assert joined["use_dora"] is True
    state = dict.fromkeys(own_state(third), 1.0)
    torch.testing.assert_close(logits(bank, "third", state), peft_logits(base, tmp_path / "third", 2), **CLOSE)

    weights = "first=0.5,guest=1.5"
    api.compose(
        bank, ComposeConfig(mode="manual", name="sum", tasks="first,guest", set=(f"weights={weights}",), device="cpu")
    )
    api.export(bank, "sum", tmp_path / "sum")
    first = Bank.open(bank).snapshot().adapter_of("first").digest
    found = bring_in_head(tmp_path / "sum", dora_folder, tmp_path / "with head")
    expected = logits(bank, "guest", {first: 0.5, adapter.digest: 1.5})
    torch.testing.assert_close(peft_logits(base, found, 3), expected, **CLOSE)


def bring_in_head(folder: Path, source: Path, target: Path) -> Path:
    """The adapter of one folder with the classifier of another."""
    config = json.loads((folder / "adapter_config.json").read_text())
    head = {name: tensor for name, tensor in load_file(source / WEIGHTS).items() if "classifier" in name}
    target.mkdir()
    save_file(load_file(folder / WEIGHTS) | head, target / WEIGHTS, metadata={"format": "pt"})
    config |= {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: None, r"'use_dora' \(true\) is on, and '.*query' has no lora_magnitude_vector"),
        (lambda m: m[:-1].clone(), r"lora_magnitude_vector of '.*query' has the shape \[31\], not \[32\]"),
        (lambda m: m * torch.nan, "holds values that are not finite"),
    ],
)
def test_a_broken_magnitude_is_refused_by_name(dora_folder: Path, bank: Path, bring_in: Any, change, reason) -> None:
    tensors = load_file(dora_folder / WEIGHTS)
    changed = change(tensors.pop(MAGNITUDE))
    save_file(tensors if changed is None else tensors | {MAGNITUDE: changed}, dora_folder / WEIGHTS)
    with pytest.raises(DataError, match=reason):
        bring_in(dora_folder)
