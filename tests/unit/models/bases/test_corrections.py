"""Corrections of a quantised base: the low-rank factors beside it, by their equations in numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lorabank.core.errors import ConfigError
from lorabank.models.bases.loading import load_base
from lorabank.models.bases.quantised.corrections.inputs import TEXT, input_magnitudes
from lorabank.models.bases.quantised.recipe import read_recipe
from tests.unit.models.bases.test_quantised import choose_quantiser, kept_and_back, random, record


def truncated(error: np.ndarray, r: int, scale: np.ndarray) -> np.ndarray:
    """``U_r Sigma_r V_r^T S^-1`` of ``error S``, by numpy's singular values in float64."""
    U, S, V = np.linalg.svd(error * scale, full_matrices=False)
    return (U[:, :r] * S[:r]) @ V[:r] / scale


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("weighed", [False, True])
def test_lqer_is_the_truncated_error(shape: tuple[int, int], weighed: bool) -> None:
    weight, inputs = random(*shape), random(shape[1], seed=1).abs() + 0.1
    kept, Q = kept_and_back("int8", weight)
    correction = read_recipe(f"int8+lqer:rank=3,activations={weighed}").correction
    found = correction.split(weight, choose_quantiser("int8"), inputs if weighed else None)
    scale = inputs.double().numpy() if weighed else np.ones(shape[1])
    expected = truncated((weight - Q).double().numpy(), 3, scale)
    assert np.abs((found.B.double() @ found.A.double()).numpy() - expected).max() < 1e-6
    assert torch.equal(found.kept["codes"], kept["codes"])
    assert (found.A.shape, found.B.shape) == ((3, shape[1]), (shape[0], 3))


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_loftq_finds_both_in_turn(name: str) -> None:
    weight, quantiser = random(64, 96), choose_quantiser(name)
    errors = []
    for iterations in (1, 2, 5):
        correction = read_recipe(f"{name}+loftq:rank=8,iterations={iterations}").correction
        kept, A, B = correction.split(weight, quantiser, None)
        low = np.zeros(weight.shape)
        for _ in range(iterations):
            left = torch.from_numpy(weight.double().numpy() - low).float()
            Q = quantiser.dequantise(quantiser.quantise(left), (64, 96), torch.float32)
            low = truncated((weight - Q).double().numpy(), 8, np.ones(96))
        assert np.linalg.norm((B @ A).double().numpy() - low) < 0.05 * np.linalg.norm(low)
        back = quantiser.dequantise(kept, (64, 96), torch.float32)
        errors.append(float((weight - back - B @ A).norm() / weight.norm()))
    assert errors == sorted(errors, reverse=True)


def test_inputs_are_measured_as_the_equation_says(make_language_model: Callable[..., Path]) -> None:
    """Hooks of the test's own over the same parts of the text."""
    base = load_base(record(make_language_model(), None))
    names = [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]
    found = input_magnitudes(base.model, base.tokenizer, names)
    assert set(found) == set(names)
    ids = base.tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    seen: list[torch.Tensor] = []
    base.model.get_submodule(names[0]).register_forward_hook(lambda module, args, out: seen.append(args[0][0]))
    for start in range(0, len(ids), 254):
        base.model(input_ids=torch.tensor([ids[start : start + 254]]))
    largest = torch.stack([x.abs().mean(0) for x in seen]).amax(0).clamp_min(1e-4).double()
    expected = largest / (largest.min() * largest.max()).sqrt()
    assert torch.allclose(found[names[0]].double(), expected, rtol=1e-4)


def test_the_text_that_bases_are_made_of_never_changes() -> None:
    digest = hashlib.sha256(TEXT.read_bytes()).hexdigest()
    assert digest == "cd2361ad65b18bf044d594c662cb3d2923127826cfbfe1553e046f117f71e2d9"


def test_a_correction_belongs_to_the_base(
    make_language_model: Callable[..., Path], tmp_path: Path, monkeypatch
) -> None:
    """Nearer to the float base, part of the fingerprint, and the same from the cache as when it is made."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    folder = make_language_model()
    plain, rough, fine = (record(folder, text) for text in (None, "int8", "int8+lqer:rank=4"))
    assert fine.quantisation == "int8:+lqer:rank=4,activations=true"
    assert len({one.fingerprint for one in (plain, rough, fine)}) == 3
    models = [load_base(one).model for one in (plain, rough, fine, fine)]
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == 1
    name = "model.layers.0.self_attn.q_proj"
    W, Q, corrected, again = (model.get_submodule(name).weight for model in models)
    assert float((W - corrected).norm()) < float((W - Q).norm())
    assert torch.equal(corrected, again)


@pytest.mark.parametrize("text", ["int8+lqer+loftq", "int8+", "lqer", "int8+nf4"])
def test_a_recipe_is_a_quantiser_and_a_correction(text: str) -> None:
    with pytest.raises(ConfigError):
        read_recipe(text)
