"""What is kept of corrected bases: it never makes another base than the one that is made without it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from lorabank.core.config import InitConfig
from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.quantised.corrections.inputs import TEXT
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.quantised.recipe import read_recipe
from lorabank.models.bases.resolving import resolve_base
from lorabank.workflows.bases import described
from tests.unit.models import torch_encoder

RECIPE = "int8+lqer:rank=4"


@pytest.fixture
def corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home/lorabank/corrected"


def weights(folder: Path, task_type: str) -> dict[str, torch.Tensor]:
    model: Any = load_base(describe_base(resolve_base(str(folder)), task_type, RECIPE)).model
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_base_of_another_task_type_is_made_as_if_it_were_alone(
    make_language_model: Callable[..., Path], corrected: Path
) -> None:
    folder = make_language_model("t5")
    alone = weights(folder, "SEQ_2_SEQ_LM")
    for file in corrected.iterdir():
        file.unlink()
    weights(folder, "SEQ_CLS")
    assert same(weights(folder, "SEQ_2_SEQ_LM"), alone)
    assert same(weights(folder, "SEQ_2_SEQ_LM"), alone)


@pytest.mark.parametrize("changed", ["weights", "tokenizer"])
def test_a_base_that_differs_in_one_thing_is_made_as_if_it_were_alone(
    make_language_model: Callable[..., Path], corrected: Path, changed: str
) -> None:
    folder, other = make_language_model(), make_language_model(name="other")
    if changed == "weights":
        file = other / "model.safetensors"
        save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    else:  # the text on which the inputs are measured is read otherwise
        file = other / "tokenizer.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(
            json.dumps(settings | {"normalizer": {"type": "Replace", "pattern": {"String": "e"}, "content": "x"}})
        )
    alone = weights(other, "CAUSAL_LM")
    for kept in corrected.iterdir():
        kept.unlink()
    assert not same(weights(folder, "CAUSAL_LM"), alone)
    assert same(weights(other, "CAUSAL_LM"), alone)


def test_a_file_that_lacks_a_layer_is_made_anew(make_language_model: Callable[..., Path], corrected: Path) -> None:
    folder = make_language_model()
    whole = weights(folder, "CAUSAL_LM")
    (file,) = corrected.iterdir()
    tensors = load_file(file)
    name = next(iter(whole))
    save_file({key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}|")}, file)
    assert same(weights(folder, "CAUSAL_LM"), whole)
    assert load_file(file).keys() == tensors.keys()


def test_what_killed_processes_left_is_removed(make_language_model: Callable[..., Path], corrected: Path) -> None:
    corrected.mkdir(parents=True, mode=0o700)
    old, new = corrected / "a.part", corrected / "b.part"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 3 * 24 * 3600,) * 2)
    weights(make_language_model(), "CAUSAL_LM")
    assert not old.exists()
    assert new.exists(), "another process may still write it"
    assert len(list(corrected.glob("*.safetensors"))) == 1


def test_experts_that_would_stay_floats_are_refused(make_language_model: Callable[..., Path]) -> None:
    folder = make_language_model("mixtral")
    described(InitConfig(base=str(folder)))
    with pytest.raises(IncompatibleError, match=r"cannot be quantised: its experts, such as model\.layers\.0"):
        described(InitConfig(base=str(folder), quantise="nf4"))


def test_the_layers_that_stay_as_they_are_are_told_to_others(make_language_model: Callable[..., Path]) -> None:
    """By the very function with which transformers asks whether to quantise a layer."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    from lorabank.models.bases.targets import as_skipped

    folder = make_language_model("gpt2")
    resolved = resolve_base(str(folder))
    base, plain = (load_base(describe_base(resolved, "CAUSAL_LM", text)) for text in ("nf4", None))
    ours = {name for name, module in base.model.named_modules() if isinstance(module, QuantisedLinear)}
    skipped = list(as_skipped(plain.model, plain.head_modules))
    theirs = {
        name
        for name, module in plain.model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and should_convert_module(name, skipped)
    }
    assert theirs == ours
    assert skipped == [".c_attn", "lm_head"]


@torch.no_grad()
def test_a_correction_knows_what_the_output_of_torchs_attention_reads(
    make_base: Callable[..., Path], corrected: Path, tmp_path: Path
) -> None:
    """torch computes with the weight of ``out_proj`` and never calls it; what it reads is computed here by hand."""
    letters = AutoTokenizer.from_pretrained(make_base("bert", name="letters"))
    folder = torch_encoder.save(tmp_path / "torch", letters)
    made = weights(folder, "SEQ_CLS")
    blocks = [f"body.encoder.layers.{i}" for i in range(2)]
    assert made.keys() == {f"{one}.{part}" for one in blocks for part in ("self_attn.out_proj", "linear1", "linear2")}

    model = torch_encoder.TorchModel.from_pretrained(folder)
    attention, means = model.encoder.layers[0].self_attn, []
    ids = letters(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    for part in torch.tensor(ids).split(64):
        q, k, v = F.linear(model.embeddings(part), attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        heads = (F.softmax(q[:, i] @ k[:, i].T / 4, -1) @ v[:, i] for i in (slice(0, 16), slice(16, 32)))
        means.append(torch.cat([*heads], -1).abs().mean(0))
    largest = torch.stack(means).amax(0).clamp_min(1e-4).double()
    scale = largest / (largest.min() * largest.max()).sqrt()
    W, quantiser = attention.out_proj.weight, read_recipe("int8").quantiser
    Q = quantiser.dequantise(quantiser.quantise(W), (32, 32), torch.float32)
    U, S, V = torch.linalg.svd((W - Q).double() * scale)
    expected = Q + (U[:, :4] * S[:4]) @ V[:4] / scale
    torch.testing.assert_close(made[f"{blocks[0]}.self_attn.out_proj"].double(), expected, rtol=0, atol=1e-6)
