"""What leaves the bank, and what lies in it, means the same in plain PEFT: also where PEFT's rules get in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.errors import IncompatibleError
from lorabank.exchange.peft_folder import CONFIG_FILE, with_fields
from tests.unit.exchange.test_peft_check import BASES, SMALL
from tests.unit.workflows.conftest import write_rows

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SETTINGS = {"epochs": 1, "learning_rate": 3e-2, "device": "cpu", "max_length": 16, "target_modules": "all-linear"}


class Notices:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, message: str) -> None:
        self.told.append(message)

    def start(self, what: str, total: int) -> None: ...

    def advance(self, done: int, values: Any) -> None: ...

    def finish(self) -> None: ...


def save_mixture(folder: Path, save_base) -> Path:
    """A tiny mixture of experts with a dense layer and shared experts; its tokenizer is the letters'."""
    import transformers

    save_base(folder, "llama")
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model("deepseek_v3", **(SMALL | BASES["deepseek_v3"]))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def add(tmp_path: Path, base: Path, labels=("no", "yes"), observer=None, **settings: Any) -> Path:
    data = write_rows(tmp_path / "rows.jsonl", labels)
    config = TrainConfig(**({"data": str(data)} | SETTINGS | settings))
    init = InitConfig(base=str(base), task_type="SEQ_CLS")
    api.add_task(tmp_path / "bank", "moved", config, init=init, observer=observer or Notices())
    return tmp_path / "bank"


def adapter_folder(bank: Path) -> Path:
    return bank / "adapters" / Bank.open(bank).snapshot().adapter_of("moved").digest


def test_a_mixture_of_experts_means_the_same_in_the_bank_and_exported(
    tmp_path, save_base, logits, peft_logits
) -> None:
    base = save_mixture(tmp_path / "base", save_base)
    bank = add(tmp_path, base)
    digest = Bank.open(bank).snapshot().adapter_of("moved").digest
    expected = logits(bank, "moved", {digest: 1.0})
    assert (logits(bank, "moved", {}) - expected).abs().max() > 1e-2
    torch.testing.assert_close(peft_logits(base, adapter_folder(bank), 2), expected, **CLOSE)
    api.export(bank, "moved", tmp_path / "out")
    torch.testing.assert_close(peft_logits(base, tmp_path / "out", 2), expected, **CLOSE)
    assert api.verify(bank, full=True) == ()


def test_an_adapter_stored_with_dropout_and_targets_that_peft_misreads_is_exported_rightly(
    tmp_path, save_base, logits, peft_logits, monkeypatch
) -> None:
    """As banks hold them that were made before the stored form took PEFT's rules into account."""
    base = save_mixture(tmp_path / "base", save_base)

    def as_before(files, *_):
        return dict(files) | {CONFIG_FILE: with_fields(files[CONFIG_FILE], lora_dropout=0.1)}

    monkeypatch.setattr("lorabank.workflows.learning.train.stored_files", as_before)
    bank = add(tmp_path, base)
    assert json.loads((adapter_folder(bank) / CONFIG_FILE).read_text(encoding="utf-8"))["lora_dropout"] == 0.1
    for number, own in enumerate((False, True)):
        target = tmp_path / f"out-{number}"
        api.export(bank, "moved", target, own=own)
        config = json.loads((target / CONFIG_FILE).read_text(encoding="utf-8"))
        assert config["lora_dropout"] == 0.0
        digest = Bank.open(bank).snapshot().adapter_of("moved").digest
        torch.testing.assert_close(peft_logits(base, target, 2), logits(bank, "moved", {digest: 1.0}), **CLOSE)


def test_dropout_is_the_records_and_not_the_adapters(tmp_path, save_base) -> None:
    bank = add(tmp_path, save_base(tmp_path / "base"), lora_dropout=0.25)
    record = Bank.open(bank).snapshot().adapter_of("moved")
    assert record.config["lora_dropout"] == 0.25
    assert json.loads((adapter_folder(bank) / CONFIG_FILE).read_text(encoding="utf-8"))["lora_dropout"] == 0.0


def test_what_peft_cannot_load_is_told_when_it_is_stored_and_refused_when_it_is_to_leave(
    tmp_path, save_base, monkeypatch
) -> None:
    import peft

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("no adapters on\nthis model")

    monkeypatch.setattr(peft, "get_peft_model", refuse)
    told = Notices()
    bank = add(tmp_path, save_base(tmp_path / "base"), observer=told)
    assert [line for line in told.told if "no adapters on this model" in line and "its export will be refused" in line]
    with pytest.raises(IncompatibleError, match="PEFT cannot load the adapter: no adapters on this model"):
        api.export(bank, "moved", tmp_path / "out")
    assert not (tmp_path / "out").exists()
