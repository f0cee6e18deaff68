"""Small banks on tiny bases: two tasks, the second trained on top of the first."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, InitConfig, TrainConfig
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.mixing.runtime import Plan
from lorabank.workflows.assemble import RuntimeSettings, load_runtime

TEXTS = ("a b c", "x y z z", "m", "q w e r t y u i")


def write_rows(path: Path, labels: Sequence[str], rows: int = 24, seed: int = 0) -> Path:
    """Rows whose label says which part of the alphabet the text is made of."""
    chance = random.Random(seed)
    size = 26 // len(labels)
    lines = []
    for row in range(rows):
        which = row % len(labels)
        letters = "abcdefghijklmnopqrstuvwxyz"[which * size : (which + 1) * size]
        text = " ".join(chance.choices(letters, k=chance.randint(3, 9)))
        lines.append(json.dumps({"text": text, "label": labels[which]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def fill_bank(folder: Path, base: str) -> Path:
    """A bank with `first` (2 labels, every linear module, r 2) and on top of it `second` (3 labels, q and v, r 3)."""
    common = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu", "max_length": 16}
    for number, (name, labels, own) in enumerate(
        [
            ("first", ("no", "yes"), {"r": 2, "target_modules": "all-linear", "lora_alpha": 4.0}),
            ("second", ("one", "three", "two"), {"r": 3, "lora_alpha": 6.0, "use_rslora": True}),
        ]
    ):
        data = write_rows(folder / f"{name}.jsonl", labels, seed=number)
        config = TrainConfig(**{"data": str(data), **common, **own})
        api.add_task(folder / "bank", name, config, init=InitConfig(base=base))
    return folder / "bank"


@pytest.fixture(name="fill_bank")
def _fill_bank() -> Callable[[Path, str], Path]:
    return fill_bank


@pytest.fixture(scope="session")
def bert_bank(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    return fill_bank(folder, str(save_base(folder / "base")))


@pytest.fixture
def bank(bert_bank: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(bert_bank, tmp_path / "bank"))


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """``rows(name, labels, **options)``: a JSONL file."""
    return lambda name, labels, **options: write_rows(tmp_path / name, labels, **options)


@pytest.fixture
def compose(bank: Path) -> Callable[..., None]:
    """``compose(mode, **config)`` in the copied bank."""

    def run(mode: str, **config: Any) -> None:
        api.compose(bank, ComposeConfig(mode=mode, device="cpu", **config))

    return run


@pytest.fixture
def logits() -> Callable[..., torch.Tensor]:
    """``logits(bank, task, {digest: weight})``: what lorabank's model answers to TEXTS with the task's head."""

    def run(path: Path, task: str, state: dict[str, float]) -> torch.Tensor:
        bank = Bank.open(path)
        snapshot = bank.snapshot()
        runtime = load_runtime(
            bank, snapshot, OpenBase(snapshot.base), RuntimeSettings(device="cpu", dtype="float32", batch_size=4)
        )
        weights = torch.tensor([state.get(name, 0.0) for name in runtime.stack.names])
        runtime.enter(Plan(weights=weights.numpy()))
        names = [record.name for record in snapshot.tasks]
        runtime.base.model.eval()
        with torch.inference_mode():
            answer = runtime.answerer.logits(TEXTS, np.full(len(TEXTS), names.index(task)))
        return answer[:, : len(snapshot.task(task).labels)]

    return run


@pytest.fixture
def peft_logits() -> Callable[..., torch.Tensor]:
    """``peft_logits(base, folder, labels)``: the same from plain PEFT; without a folder no adapter."""

    def run(base: Path, folder: Path | None, labels: int) -> torch.Tensor:
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
        tokenizer = AutoTokenizer.from_pretrained(base)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder)
        inputs = tokenizer(list(TEXTS), padding=True, padding_side="right", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            return model.eval()(**inputs).logits

    return run


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes | None]]:
    """Every path below a folder and its content; SQLite's side files come and go."""

    def read(folder: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))
            if not path.name.endswith(("-wal", "-shm"))
        }

    return read
