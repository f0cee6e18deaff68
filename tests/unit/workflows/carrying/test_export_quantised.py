"""Adapters of quantised bases whose fused matrices stay floats, as plain PEFT reads them outside of the bank."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig
from lorabank.models.bases.loading import load_base
from lorabank.models.bases.quantised.linear import QuantisedLinear
from tests.unit.workflows.carrying.test_model_card import parts
from tests.unit.workflows.language_models import add

IDS = torch.arange(4, 24).view(2, 10)


def learnt(bank: Path, base: Path, quantise: str, **config: Any) -> Path:
    api.init_bank(bank, InitConfig(base=str(base), task_type="auto", quantise=quantise))
    add(bank, base, "asked", ("no", "yes"), 0, r=2, lora_dropout=0.0, **config)
    return bank


@torch.no_grad()
def logits(bank: Path, base: Path, folder: Path) -> Tensor:
    """Plain PEFT over the float model with the matrices of a bank's base."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for name, module in load_base(Bank.open(bank).snapshot().base).model.named_modules():
        if isinstance(module, QuantisedLinear):
            model.get_submodule(name).weight.copy_(module.weight.T)  # GPT-2 keeps them transposed
    found: Tensor = peft.PeftModel.from_pretrained(model, folder).eval()(input_ids=IDS).logits
    return found


@pytest.mark.by_turns
@pytest.mark.parametrize("targets", ["c_attn", "c_attn,c_fc"])
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_the_correction_leaves_what_is_not_quantised(
    variant: str, targets: str, make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_language_model("gpt2")
    bank = learnt(tmp_path / "bank", base, "int8+lqer:rank=3", variant=variant, target_modules=targets)
    bare = tmp_path / "bare"
    api.init_bank(bare, InitConfig(base=str(base), task_type="auto", quantise="int8"))
    api.export(bank, "asked", tmp_path / "out")
    (stored,) = (bank / "adapters").iterdir()
    torch.testing.assert_close(logits(bare, base, tmp_path / "out"), logits(bank, base, stored), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_the_snippet_quantises_what_the_bank_does(
    quantise: str, make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    bank = learnt(tmp_path / "bank", make_language_model("gpt2"), quantise)
    api.export(bank, "asked", tmp_path / "out")
    _, _, code = parts((tmp_path / "out/README.md").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.keyword)]
    (skipped,) = (node.value for node in found if node.arg == "llm_int8_skip_modules")
    assert ast.literal_eval(skipped) == [".c_attn", "lm_head"]


@pytest.mark.parametrize("quantise", ["hqq", "nf4:block_size=128"])
def test_the_snippet_says_where_it_loads_other_weights(
    quantise: str, make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    bank = learnt(tmp_path / "bank", make_language_model(), quantise)
    api.export(bank, "asked", tmp_path / "out")
    _, _, code = parts((tmp_path / "out/README.md").read_text(encoding="utf-8"))
    assert "BitsAndBytes" not in code
    assert f"quantised weights that transformers does not make; this loads the float ones:\n# {quantise}" in code
