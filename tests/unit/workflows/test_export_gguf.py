"""A base that is a GGUF file: what leaves the bank names the converted checkpoint, which plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import TrainConfig
from tests.unit.models.bases.test_gguf import file, llama  # noqa: F401
from tests.unit.workflows.conftest import write_rows
from tests.unit.workflows.language_models import CLOSE, TEMPLATE, add, bank_logits, own_state, peft_logits


def test_an_export_names_the_converted_base_and_comes_back(
    file: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    bank = tmp_path / "bank"
    add(bank, file, "first", ("no", "yes"), 0)
    assert Bank.open(bank).snapshot().base.name == str(file)
    folder = api.show(bank, "first")["base"]["folder"]
    api.export(bank, "first", tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == folder != str(file)
    assert repr(folder) in (tmp_path / "out/README.md").read_text(encoding="utf-8")
    for found, expected in zip(
        peft_logits(Path(folder), tmp_path / "out"), bank_logits(bank, own_state(bank, "first")), strict=True
    ):
        torch.testing.assert_close(found, expected, **CLOSE)
    data = TrainConfig(
        data=str(write_rows(tmp_path / "r.jsonl", ("no", "yes"))), device="cpu", set=(f"prompt_template={TEMPLATE}",)
    )
    again = api.import_adapter(bank, tmp_path / "out", "again", config=data).adapter
    assert again.digest == Bank.open(bank).snapshot().adapter_of("first").digest
