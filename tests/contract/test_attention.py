"""Banks on a base whose attention is torch's own: answers, mixtures, and PEFT out and in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import IncompatibleError
from tests.contract.conftest import SETTINGS, write_task
from tests.unit.models.torch_encoder import save

TEXTS = ("a b c a b", "x y z", "m n o p q r s t", "c", "z a y b")
STEM = "body.encoder.layers.0.self_attn"


@pytest.fixture
def base(make_base: Callable[..., Path], tmp_path: Path) -> Path:
    return save(tmp_path / "torch", AutoTokenizer.from_pretrained(make_base("bert", name="letters")))


def settings(folder: Path, task: str, **config: Any) -> TrainConfig:
    number = ("one", "two").index(task)
    path = folder / f"{task}.jsonl"
    data = path if path.exists() else write_task(path, labels=2 + number, seed=number)
    return TrainConfig(**({"data": str(data)} | SETTINGS | config))


def fill(bank: Path, base: Path, **config: Any) -> Path:
    for task in ("one", "two"):
        api.add_task(bank, task, settings(bank.parent, task, **config), init=InitConfig(base=str(base)))
    return bank


def in_peft(base: Path, folder: Path, labels: int) -> np.ndarray:
    """Probabilities in plain PEFT, one text at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
        model = peft.PeftModel.from_pretrained(plain, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        logits = [
            model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0] for text in TEXTS
        ]
    return np.stack([one.softmax(-1).numpy() for one in logits])


def check_same(bank: Path, of: str, expected: np.ndarray, **asked: Any) -> None:
    """In one batch, whose texts are padded."""
    labels = Bank.open(bank).snapshot().task(of).labels
    for one, row in zip(api.predict(bank, TEXTS, PredictConfig(device="cpu", **asked)), expected, strict=True):
        assert one.label == labels[int(row.argmax())]
        assert one.probability == pytest.approx(float(row.max()), abs=1e-5)


@pytest.mark.parametrize("targets", ["auto", "k_proj,linear1"])
def test_both_tasks_are_plain_peft(base: Path, tmp_path: Path, targets: str) -> None:
    bank = fill(tmp_path / "bank", base, target_modules=targets)
    names = Bank.open(bank).snapshot().adapter_of("one").target_modules
    assert (f"{STEM}.q_proj" in names) == (targets == "auto")
    for task, labels in (("one", 2), ("two", 3)):
        api.export(bank, task, tmp_path / task, state="learnt")
        check_same(bank, task, in_peft(base, tmp_path / task, labels), task=task, state="learnt")
    digest = Bank.open(bank).snapshot().adapter_of("one").digest
    check_same(bank, "one", in_peft(base, bank / "adapters" / digest, 2), task="one", state="learnt")
    guest = tmp_path / "guest"
    api.import_adapter(
        guest, tmp_path / "one", "one", config=settings(tmp_path, "one"), init=InitConfig(base=str(base))
    )
    check_same(guest, "one", in_peft(base, tmp_path / "one", 2), task="one")
    assert set(Bank.open(guest).snapshot().adapter_of("one").target_modules) == set(names)


def test_routed_texts_answer_as_each_task_alone(base: Path, tmp_path: Path) -> None:
    bank = fill(tmp_path / "bank", base, target_modules="q_proj,v_proj,out_proj")
    api.compose(bank, ComposeConfig(mode="prototype", name="routed", device="cpu"))
    routed = api.predict(bank, TEXTS * 4, PredictConfig(composition="routed", device="cpu"))
    assert {one.task for one in routed} == {"one", "two"}
    for one in routed:
        (alone,) = api.predict(bank, [one.text], PredictConfig(task=one.task, state="learnt", device="cpu"))
        assert one.label == alone.label
        assert one.probability == pytest.approx(alone.probability, abs=1e-5)


def test_a_folder_of_pefts_own_is_taken(base: Path, tmp_path: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["self_attn"], rank_pattern={"1.self_attn": 3}
    )
    model = peft.get_peft_model(plain, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora" in name and "out_proj.lora_B" not in name:  # PEFT adds an adapter on the output twice
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs/adapter_model.safetensors")
    assert any(".base_layer.out_proj.lora_A" in key for key in tensors)
    bank = tmp_path / "bank"
    api.import_adapter(
        bank, tmp_path / "theirs", "one", config=settings(tmp_path, "one"), init=InitConfig(base=str(base))
    )
    expected = in_peft(base, tmp_path / "theirs", 2)
    check_same(bank, "one", expected, task="one")
    api.export(bank, "one", tmp_path / "again")
    np.testing.assert_allclose(in_peft(base, tmp_path / "again", 2), expected, atol=1e-5)


def test_what_peft_would_compute_otherwise_stays_in_the_bank(base: Path, tmp_path: Path) -> None:
    bank = fill(tmp_path / "bank", base, target_modules="all-linear")
    assert len(api.predict(bank, TEXTS, PredictConfig(device="cpu", task="one"))) == len(TEXTS)
    with pytest.raises(IncompatibleError, match="twice in each pass") as caught:
        api.export(bank, "one", tmp_path / "one")
    assert "\n" not in str(caught.value)
