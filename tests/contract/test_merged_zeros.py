"""QA-LoRA's merge as an export: the whole quantised model, read by the code of its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.exchange.peft_folder import read_adapter
from lorabank.models.bases.loading import load_base
from tests.unit.workflows.language_models import PROMPTS, add, bank_logits, own_state

AMPLIFIED = 1e-3
"""Of the bank's float32 beside float64: a random model of two layers can make thousands of roundings (6e-8) of one."""
LABELS = {"one": ("no", "yes"), "two": ("one", "three", "two")}


def learnt(bank: Path, base: Path, quantise: str | None, variant: str = "qa-lora", group: int = 32) -> Path:
    """Two tasks on top of each other; their queries and values have 64 inputs, which two groups of 32 are."""
    api.init_bank(bank, InitConfig(base=str(base), task_type="auto", quantise=quantise))
    own = (f"group={group}",) if variant == "qa-lora" else ()
    for seed, (task, labels) in enumerate(LABELS.items()):
        add(
            bank, base, task, labels, seed, r=2, variant=variant, strategy="inclora", lora_dropout=0.0,
            set=("prompt_template={text} is:", *own),
        )  # fmt: skip
    return bank


@pytest.fixture
def base(make_language_model: Callable[..., Path]) -> Path:
    return make_language_model(hidden_size=64, initializer_range=0.2)


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model that the card's code makes."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names["model"]


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("quantise", "group"),
    [("hqq:group_size=32", 32), ("hqq:group_size=64", 32), ("hqq:group_size=32,bits=8", 64), ("hqq:bits=2", 64)],
)
def test_the_merged_model_answers_as_the_bank(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantise: str, group: int
) -> None:
    bank = learnt(tmp_path / "bank", base, quantise, group=group)
    result = api.export(bank, "two", tmp_path / "out", merged=True)
    assert (result.kind, result.state) == ("model", "now")
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(result.files)
    model = loaded(tmp_path / "out", monkeypatch)
    tensors = load_file(tmp_path / "out/model.safetensors")
    plain = load_base(Bank.open(bank).snapshot().base).model
    api.export(bank, "two", tmp_path / "adapter")
    factors, _, _ = read_adapter(tmp_path / "adapter")
    assert len(factors.A) == 2 * 2
    for name in factors.A:
        layer: Any = plain.get_submodule(name)
        assert torch.equal(tensors[f"{name}.kept_codes"], layer.kept["codes"])
        expected = layer.weight.double() + factors.delta(name).double()
        error = (model.get_submodule(name).weight.double() - expected).abs().max()
        assert error < 1e-6 * expected.abs().max(), name

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = [model.double()(**tokenizer(text, return_tensors="pt")).logits[0] for text in PROMPTS]
    for ours, theirs in zip(found, bank_logits(bank, own_state(bank, "two")), strict=True):
        assert (ours - theirs).abs().max() < AMPLIFIED * theirs.abs().max()


def test_it_is_as_small_as_the_base(base: Path, tmp_path: Path) -> None:
    """With groups of one size nothing is added to what the quantiser keeps."""
    bank = learnt(tmp_path / "bank", base, "hqq:group_size=32")
    api.export(bank, "one", tmp_path / "out", merged=True, state="learnt")
    plain = load_base(Bank.open(bank).snapshot().base, dtype="float32").model
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert sum(one.nbytes for one in tensors.values()) == sum(one.nbytes for one in plain.parameters())


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("quantise", "variant", "said"),
    [
        ("nf4", "qa-lora", "NF4 keeps no zero points"),
        ("hqq:group_size=32+lqer:rank=2", "qa-lora", "is corrected"),
        ("hqq:group_size=32", "lora", "differs from input to input"),
    ],
)
def test_what_no_zero_point_takes_is_refused(
    base: Path, tmp_path: Path, quantise: str | None, variant: str, said: str
) -> None:
    bank = learnt(tmp_path / "bank", base, quantise, variant)
    with pytest.raises(IncompatibleError, match=said) as caught:
        api.export(bank, "two", tmp_path / "out", merged=True)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--check is for adapters"):
        api.export(bank, "two", tmp_path / "out", merged=True, check="vllm")
