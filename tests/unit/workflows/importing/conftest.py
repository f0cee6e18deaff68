"""A folder that PEFT saved, and its import into a small bank."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank import api
from lorabank.core.config import TrainConfig

LABELS = ("one", "three", "two")


@pytest.fixture(scope="session")
def peft_folder(bert_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT itself saves: three labels, random factors, ranks and alphas by pattern."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(bert_bank.parent / "base", num_labels=3)
    settings = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        r=4,
        lora_alpha=6,
        use_rslora=True,
        lora_dropout=0.25,
        rank_pattern={"0.attention.self.query": 2},
        alpha_pattern={"value": 3.0},
    )
    peft = get_peft_model(model, settings)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    peft.save_pretrained(folder)
    return folder


@pytest.fixture
def source(peft_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(peft_folder, tmp_path / "source"))


@pytest.fixture
def bring_in(bank: Path, rows: Callable[..., Path]) -> Callable[..., Any]:
    """``bring_in(source, task="guest", path=bank, labels=None, observer, **config)``: import with 3-label rows."""

    def run(source: Path, task: str = "guest", **options: Any) -> Any:
        keys = ("labels", "observer", "init", "base_fingerprint", "part", "ignore_unknown")
        passed = {name: options.pop(name) for name in keys if name in options}
        path = options.pop("path", bank)
        data = options.pop("data", None) or rows("guest.jsonl", LABELS, rows=30, seed=5)
        config = TrainConfig(**({"data": str(data), "device": "cpu", "max_length": 16} | options))
        return api.import_adapter(path, source, task, config=config, **passed)

    return run
