"""Adapters on torch's attention as PEFT keeps, loads and answers them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.attention_layout import not_in_peft, passed_by_kernels
from lorabank.exchange.peft_check import plain_files
from lorabank.exchange.peft_folder import CONFIG_FILE, adapter_files, read_adapter, read_shapes, read_stack
from lorabank.models.bases.fingerprint import config_hash, read_json
from lorabank.models.bases.kinds.attention import OUTPUT
from tests.unit.models.bases.kinds.test_attention import (
    ALPHA,
    CLOSE,
    IDS,
    PADDED,
    STEM,
    R,
    adapter,
    attention,
    changed,
    parts,
)
from tests.unit.models.torch_encoder import make


def base_of(folder: Path) -> BaseModelRecord:
    make().save_pretrained(folder)
    return BaseModelRecord(
        name=str(folder), source="local", revision=None, config_hash=config_hash(read_json(folder / "config.json")),
        fingerprint="", tokenizer_hash="", dtype="float32", task_type="SEQ_CLS", hidden_size=32, parameters=0,
    )  # fmt: skip


HEAD = {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.zeros(2)}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("chosen", [parts()[:3], [parts()[0], parts()[2]], parts()[1:2]], ids=["qkv", "qv", "k"])
def test_the_folder_is_plain_pefts(chosen: list[str], rslora: bool, tmp_path: Path) -> None:
    """Beside another layer; one of the attention's layers has a higher rank."""
    base = base_of(tmp_path / "base")
    one = adapter([*chosen, "body.encoder.layers.1.linear1"], seed=1)
    wide = adapter(chosen[-1:], r=5, seed=2)
    s = ALPHA / R**0.5 if rslora else ALPHA / R
    factors = LoraFactors({**one.A, **wide.A}, {**one.B, **wide.B}, dict.fromkeys(one.A, s))
    files = plain_files(
        adapter_files(
            factors, HEAD, base_model=base.name, task_type="SEQ_CLS", r=R, lora_alpha=ALPHA, use_rslora=rslora,
            head_modules=("classifier",),
        ),
        base,
        2,
    )  # fmt: skip
    folder = tmp_path / "out"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert json.loads((folder / CONFIG_FILE).read_text())["target_modules"] == [STEM, "body.encoder.layers.1.linear1"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(make(), folder).eval()(IDS, PADDED).logits
        plain = changed((1.0, factors))
        plain.classifier.load_state_dict({name.rpartition(".")[2]: value for name, value in HEAD.items()})
        torch.testing.assert_close(theirs, plain(IDS, PADDED).logits, **CLOSE)
    back, _, _ = read_adapter(folder)
    assert {name: len(A) for name, A in back.A.items()} == {name: len(A) for name, A in factors.A.items()}
    assert {name: (len(A), A.shape[1]) for name, A in back.A.items()} == {
        name: (shape.r, shape.d_in) for name, shape in read_shapes(folder).items()
    }
    stack = read_stack({"one": folder}, device="cpu", dtype=torch.float32)
    for name in factors.A:
        torch.testing.assert_close(back.delta(name), factors.delta(name))
        torch.testing.assert_close(stack.modules[name].delta(torch.ones(1)), factors.delta(name))
    assert plain_files(files, base, 2) == files  # what lies in the bank is exported as it is


def test_what_peft_computes_otherwise_is_not_exported() -> None:
    def reason(names: list[str], *, gained: bool = False, **settings: Any) -> str:
        return str(not_in_peft(STEM, attention(**settings), names, gained=gained))

    assert "width of their own" in reason(parts()[:3], kdim=5)
    assert "DoRA" in reason(parts()[:3], gained=True)
    assert "twice" in reason(parts())
    assert reason(parts()[:3]) == "None"


@pytest.mark.parametrize("still", [parts(), parts()[3:], parts()[:1]], ids=["all", "output", "query"])
def test_what_changes_nothing_is_left_out_where_peft_has_no_form_for_it(still: list[str], tmp_path: Path) -> None:
    """B is 0 where no text passes, as in the image half of a model."""
    base = base_of(tmp_path / "base")
    factors = adapter([*parts(), "body.encoder.layers.1.linear1"], seed=1)
    B = {name: torch.zeros_like(b) if name in still else b for name, b in factors.B.items()}
    factors = LoraFactors(factors.A, B, factors.scaling)
    settings = {"base_model": base.name, "task_type": "SEQ_CLS", "r": R, "lora_alpha": ALPHA, "use_rslora": False}
    files = adapter_files(factors, HEAD, head_modules=("classifier",), **settings)
    if f"{STEM}.{OUTPUT}" not in still:
        with pytest.raises(IncompatibleError, match="twice in each pass"):
            plain_files(files, base, 2)
        return
    (tmp_path / "out").mkdir()
    for name, data in plain_files(files, base, 2).items():
        (tmp_path / "out" / name).write_bytes(data)
    back, _, _ = read_adapter(tmp_path / "out")
    assert back.A.keys() == factors.A.keys() - {f"{STEM}.{OUTPUT}"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "out").eval()(IDS, PADDED).logits
        plain = changed((1.0, factors))
        plain.classifier.load_state_dict({name.rpartition(".")[2]: value for name, value in HEAD.items()})
        torch.testing.assert_close(theirs, plain(IDS, PADDED).logits, **CLOSE)


@torch.no_grad()
def test_peft_is_passed_by_where_torch_has_a_kernel() -> None:
    """In evaluation its model answers as the bare base."""
    names = [*parts()[:3], "body.encoder.layers.1.linear1", "classifier"]
    assert list(passed_by_kernels(make(fused=True), names)) == [*sorted(parts()[:3]), names[3]]
    assert list(passed_by_kernels(make(), names)) == []
    config = peft.LoraConfig(r=R, target_modules=["self_attn", "linear1"], init_lora_weights=False)
    theirs = peft.get_peft_model(make(fused=True), config).eval()
    assert torch.equal(theirs(input_ids=IDS).logits, make(fused=True)(IDS).logits)
    theirs = peft.get_peft_model(make(), config).eval()
    assert not torch.allclose(theirs(input_ids=IDS).logits, make()(IDS).logits, atol=1e-2)
