"""Row gains as PEFT's DoRA, in and out, with PEFT itself as the judge on a classifier and a language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.exchange.config_fields import parse
from lorabank.exchange.dora import as_dora, from_dora
from lorabank.exchange.peft_folder import (
    CONFIG_FILE,
    GAIN_FILE,
    WEIGHTS_FILE,
    adapter_files,
    combined_files,
    read_adapter,
    read_factors,
    read_shapes,
    read_stack,
)
from lorabank.exchange.untrusted_adapter import ForeignAdapter, read_foreign
from lorabank.models.mixing.mixture import Mixture

KINDS = {"bert": ["query", "value"], "llama": ["q_proj", "up_proj"]}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def bases(save_base: Any, save_language_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {"bert": save_base(folder / "bert"), "llama": save_language_model(folder / "llama")}


def load(kind: str, base: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind == "llama":
        return AutoModelForCausalLM.from_pretrained(base).eval()
    torch.manual_seed(2)  # the head
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()


def inputs() -> dict[str, Tensor]:
    ids = torch.randint(4, 30, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def peft_logits(kind: str, base: Path, folder: Path) -> Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(load(kind, base), folder)
    return model.eval()(**inputs()).logits


@torch.no_grad()
def own_logits(kind: str, base: Path, stack: AdapterStack, weights: Tensor) -> Tensor:
    model = load(kind, base)
    Mixture(model, stack).merge(weights)
    return model(**inputs()).logits


def weights_of(model: nn.Module) -> Callable[[str], Tensor]:
    return lambda module: model.get_parameter(f"{module}.weight").detach()


def saved_by_peft(kind: str, base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """A random adapter that PEFT made and saved; with ``use_dora`` its magnitudes were moved, one to 0."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(target_modules=KINDS[kind], r=3, lora_alpha=5, **settings)
    model = get_peft_model(load(kind, base), config)
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name:
            parameter.data.mul_(0.5 + torch.rand(len(parameter)))
            parameter.data[0], parameter.data[1] = 0.0, -parameter.data[1]
        elif "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def read(folder: Path) -> ForeignAdapter:
    return read_foreign(parse((folder / CONFIG_FILE).read_bytes()), (folder / WEIGHTS_FILE).read_bytes())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@kinds
@pytest.mark.parametrize("rslora", [False, True])
def test_a_dora_adapter_of_peft_answers_here_and_again_in_peft(kind, rslora, bases, tmp_path: Path) -> None:
    base, weight = bases[kind], weights_of(load(kind, bases[kind]))
    source = saved_by_peft(kind, base, tmp_path / "source", 1, use_dora=True, use_rslora=rslora)
    expected = peft_logits(kind, base, source)
    assert (expected - load(kind, base)(**inputs()).logits).abs().max() > 0.01  # it matters
    foreign = read(source)
    factors = from_dora(foreign.factors, foreign.magnitude, weight)
    stack = AdapterStack.build({"guest": factors})
    torch.testing.assert_close(own_logits(kind, base, stack, torch.ones(1)), expected, rtol=1e-5, atol=1e-5)

    files = adapter_files(
        factors, {}, base_model=str(base), task_type=None, r=3, lora_alpha=5, use_rslora=rslora, head_modules=(),
        weight=weight,
    )  # fmt: skip
    stored = write(tmp_path / "stored", files)
    assert json.loads(files[CONFIG_FILE])["use_dora"] is True
    torch.testing.assert_close(peft_logits(kind, base, stored), expected, rtol=1e-5, atol=1e-5)
    for again in (read_factors(stored), read_adapter(stored)[0]):  # without the base's weights
        for module in factors.A:
            torch.testing.assert_close(again.gain[module], factors.gain[module], rtol=1e-6, atol=0)
            torch.testing.assert_close(again.B[module], factors.B[module], rtol=1e-6, atol=1e-9)
    stacked = read_stack({"guest": stored}, device="cpu", dtype=torch.float32)
    torch.testing.assert_close(own_logits(kind, base, stacked, torch.ones(1)), expected, rtol=1e-5, atol=1e-5)
    assert all(shape.gain for shape in read_shapes(stored).values())


@kinds
def test_a_weighted_sum_of_dora_and_plain_adapters_is_one_dora_adapter(kind, bases, tmp_path: Path) -> None:
    base, weight = bases[kind], weights_of(load(kind, bases[kind]))
    members = {}
    for seed, settings in enumerate([{"use_dora": True}, {"use_rslora": True}, {"use_dora": True}]):
        foreign = read(saved_by_peft(kind, base, tmp_path / f"source {seed}", seed, **settings))
        members[str(seed)] = (
            from_dora(foreign.factors, foreign.magnitude, weight) if foreign.magnitude else foreign.factors
        )
    stack, weights = AdapterStack.build(members), torch.tensor([0.7, -0.4, 1.2])
    expected = own_logits(kind, base, stack, weights)
    files = combined_files(
        stack.combine(weights), {}, base_model=str(base), task_type=None, head_modules=(), weight=weight
    )
    torch.testing.assert_close(peft_logits(kind, base, write(tmp_path / "sum", files)), expected, rtol=1e-5, atol=1e-5)


def test_a_module_without_a_gain_has_the_magnitudes_of_its_rows(make_adapter) -> None:
    shapes = {"a": (4, 6), "b": (4, 6)}
    factors = replace(make_adapter(shapes, 2, 1.0), gain={"a": torch.tensor([2.0, 1.0, -1.0, 0.5])})
    base = {name: torch.randn(4, 6, generator=torch.Generator().manual_seed(3)) for name in shapes}
    plain, magnitude = as_dora(factors, base.__getitem__)
    for name in shapes:
        adapted = base[name] + plain.scaling[name] * plain.B[name] @ plain.A[name]
        found = (magnitude[name] / adapted.norm(dim=1)).unsqueeze(1) * adapted  # DoRA, equation 5
        torch.testing.assert_close(found - base[name], factors.delta(name, base[name]), rtol=1e-5, atol=1e-5)


def test_what_no_magnitude_gives_is_refused_by_name(make_adapter) -> None:
    factors = make_adapter({"layer": (4, 6)}, 2, 1.0)
    off = replace(factors, gain={"layer": torch.tensor([0.0, 1.0, 1.0, 1.0])})
    with pytest.raises(IncompatibleError, match=r"'layer': a row that its gain switches off has a low-rank part"):
        as_dora(off, lambda module: torch.ones(4, 6))
    zero = LoraFactors({"layer": torch.ones(1, 6)}, {"layer": torch.zeros(4, 1)}, {"layer": 1.0})
    with pytest.raises(IncompatibleError, match="is zero, which has no direction"):
        as_dora(replace(zero, gain={"layer": torch.ones(4)}), lambda module: torch.zeros(4, 6))
    with pytest.raises(DataError, match="divides by zero"):
        from_dora(zero, {"layer": torch.ones(4)}, lambda module: torch.zeros(4, 6))


def test_a_folder_that_lost_its_gains_is_refused(tmp_path: Path, make_adapter) -> None:
    factors = replace(make_adapter({"layer": (4, 6)}, 2, 1.0), gain={"layer": torch.full((4,), 2.0)})
    files = combined_files(
        replace(factors, scaling={"layer": 1.0}), {}, base_model="b", task_type=None, head_modules=(),
        weight=lambda module: torch.ones(4, 6),
    )  # fmt: skip
    folder = write(tmp_path / "a", files)
    (folder / GAIN_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=GAIN_FILE):
        read_factors(folder)
    (folder / GAIN_FILE).write_bytes(files[WEIGHTS_FILE])
    with pytest.raises(DataError, match="gains do not cover all modules"):
        read_factors(folder)
