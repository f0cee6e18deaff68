"""Checkpoints of loralib in a bank: the answers of the model with the changed weights, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, LoralibConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from tests.unit.workflows.conftest import write_rows
from tests.unit.workflows.language_models import CLOSE, PROMPTS, add, bank_logits, own_state, peft_logits

D, R, ALPHA = 32, 4, 8.0
LABELS = ("one", "three", "two")


@pytest.fixture
def base(make_language_model: Callable[..., Path]) -> Path:
    return make_language_model("gpt2", initializer_range=0.2)


def checkpoint(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Query and value of both layers by `MergedLinear`, and one output by `Linear`, with random numbers."""
    dice, tensors = torch.Generator().manual_seed(3), {}
    for layer in range(2):
        name = f"transformer.h.{layer}.attn.c_attn"
        tensors[f"{name}.lora_A"] = torch.randn(2 * R, D, generator=dice) * 0.2
        tensors[f"{name}.lora_B"] = torch.randn(2 * D, R, generator=dice) * 0.2
    tensors["transformer.h.1.attn.c_proj.lora_A"] = torch.randn(R, D, generator=dice) * 0.2
    tensors["transformer.h.1.attn.c_proj.lora_B"] = torch.randn(D, R, generator=dice) * 0.2
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors", tensors


def logits_with(base: Path, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Of a plain model whose weights loralib's equation changed."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        for name in {key.rpartition(".")[0] for key in tensors}:
            A, B = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
            delta = B @ A if len(A) == R else F.conv1d(A[None], B[..., None], groups=2)[0]
            if len(A) != R:
                delta = torch.cat([delta[:D], torch.zeros(D, D), delta[D:]])
            model.get_submodule(name).weight += ALPHA / R * delta.T  # GPT-2 keeps its matrices transposed
        return [model(**tokenizer(prompt, return_tensors="pt")).logits[0] for prompt in PROMPTS]


@pytest.fixture
def bring_in(base: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(source: Path, **options: Any) -> Any:
        data = write_rows(tmp_path / "guest.jsonl", LABELS, rows=30, seed=5)
        config = TrainConfig(data=str(data), device="cpu", set=("prompt_template={text}:",))
        return api.import_adapter(
            tmp_path / "bank", source, "guest", config=config, init=InitConfig(base=str(base)), **options
        )

    return run


@pytest.fixture
def fingerprint(base: Path, tmp_path: Path) -> str:
    add(tmp_path / "bank", base, "own", ("no", "yes"), 0, r=2)
    return Bank.open(tmp_path / "bank").snapshot().base.fingerprint[:16]


def test_it_answers_as_the_changed_weights_do(base: Path, tmp_path: Path, bring_in, fingerprint: str) -> None:
    file, tensors = checkpoint(tmp_path)
    told = LoralibConfig(alpha=ALPHA, enable_lora="true, false, TRUE")
    record = bring_in(file, loralib=told, base_fingerprint=fingerprint).adapter
    assert record.metrics["source"] == str(file)
    expected = logits_with(base, tensors)
    api.export(tmp_path / "bank", "guest", tmp_path / "out", own=True)
    for found in (bank_logits(tmp_path / "bank", own_state(tmp_path / "bank", "guest")),
                  peft_logits(base, tmp_path / "out")):  # fmt: skip
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_what_it_does_not_hold_must_be_given(tmp_path: Path, bring_in, fingerprint: str) -> None:
    file, _ = checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="numerator of its scaling"):
        bring_in(file, base_fingerprint=fingerprint)
    with pytest.raises(ConfigError, match="adapts 2 of 3 parts"):
        bring_in(file, base_fingerprint=fingerprint, loralib=LoralibConfig(alpha=8.0))
    with pytest.raises(IncompatibleError, match="names no base model"):
        bring_in(file, loralib=LoralibConfig(alpha=8.0, enable_lora="true,false,true"))
    with pytest.raises(ConfigError, match="--part 1: a checkpoint of loralib holds one adapter"):
        bring_in(file, part=1, loralib=LoralibConfig(alpha=8.0))
    with pytest.raises(ConfigError, match="--ignore-unknown: a checkpoint of loralib has no config"):
        bring_in(file, ignore_unknown=True, loralib=LoralibConfig(alpha=8.0))
    # two equal rows of A beside b and -b: no factor is zero, and the product is
    name, b = "transformer.h.1.attn.c_proj", torch.ones(D, 2) * torch.tensor([1.0, -1.0])
    save_file({f"{name}.lora_A": torch.ones(2, D), f"{name}.lora_B": b}, tmp_path / "mine.safetensors")
    with pytest.raises(DataError, match=r"^mine\.safetensors: the adapter changes no logit"):
        bring_in(tmp_path / "mine.safetensors", base_fingerprint=fingerprint, loralib=LoralibConfig(alpha=8.0))
    assert len(Bank.open(tmp_path / "bank").snapshot().tasks) == 1


def test_a_pickle_is_not_read(tmp_path: Path, bring_in) -> None:
    _, tensors = checkpoint(tmp_path)
    pickled = tmp_path / "lora.pt"
    torch.save(tensors, pickled)
    with pytest.raises(DataError, match="pickles") as caught:
        bring_in(pickled, loralib=LoralibConfig(alpha=8.0))
    assert "save_file" in str(caught.value.hint)


def test_a_folder_of_peft_says_its_scaling_itself(base: Path, tmp_path: Path, bring_in, fingerprint: str) -> None:
    api.export(tmp_path / "bank", "own", tmp_path / "out")
    with pytest.raises(ConfigError, match="--alpha is for checkpoints of loralib"):
        bring_in(tmp_path / "out", loralib=LoralibConfig(alpha=8.0))
    with pytest.raises(DataError, match=r"^adapter_model\.safetensors has tensors of PEFT") as caught:
        bring_in(tmp_path / "out/adapter_model.safetensors")
    assert "name the folder" in str(caught.value.hint)
