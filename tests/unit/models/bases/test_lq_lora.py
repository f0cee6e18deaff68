"""LQ-LoRA's decomposition beside an iteration of numpy in float64, and beside LoftQ's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lorabank.models.bases.quantised.base import Quantiser
from lorabank.models.bases.quantised.recipe import Recipe, read_recipe
from lorabank.models.bases.resolving import resolve_base


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def back(quantiser: Quantiser, kept: dict[str, Tensor], weight: Tensor) -> Tensor:
    return quantiser.dequantise(kept, (len(weight), weight.shape[1]), torch.float32)


def left(recipe: Recipe, weight: Tensor, inputs: Tensor | None = None) -> Tensor:
    """``W - Q - B A`` in float64."""
    kept, A, B = recipe.correction.split(weight, recipe.quantiser, inputs)
    return weight.double() - back(recipe.quantiser, kept, weight).double() - B.double() @ A.double()


def iterated(
    weight: Tensor, quantiser: Quantiser, r: int, turns: int, scale: np.ndarray
) -> tuple[list[float], np.ndarray]:
    """The errors of the paper's algorithm 1 up to the first that rises, and L of the smallest."""
    W, low = weight.double().numpy(), np.zeros(weight.shape)
    errors: list[float] = []
    best = low
    for _ in range(turns):
        rest = torch.from_numpy(W - low).float()
        gap = W - back(quantiser, quantiser.quantise(rest), rest).double().numpy()
        U, S, V = np.linalg.svd(gap * scale, full_matrices=False)
        low = (U[:, :r] * S[:r]) @ V[:r] / scale
        error = float(np.linalg.norm((gap - low) * scale))
        if errors and error >= errors[-1]:
            break
        errors.append(error)
        best = low
    return errors, best


@pytest.mark.parametrize("name", ["nf4", "int8", "hqq:bits=2"])
@pytest.mark.parametrize("weighed", [False, True])
def test_it_is_the_papers_iteration(name: str, weighed: bool) -> None:
    """In float64 a weight between two codes may fall to the other one: that moves the factors by less than 5 %."""
    weight, inputs = random(64, 96), random(96, seed=1).abs() + 0.1
    scale = inputs.double().numpy() if weighed else np.ones(96)
    recipe = read_recipe(f"{name}+lq-lora:rank=8,iterations=3,activations={str(weighed).lower()}")
    assert recipe.correction.reads_inputs == weighed
    _, A, B = recipe.correction.split(weight, recipe.quantiser, inputs if weighed else None)
    errors, low = iterated(weight, recipe.quantiser, 8, 3, scale)
    assert np.linalg.norm((B @ A).double().numpy() - low) < 0.05 * np.linalg.norm(low)
    found = np.linalg.norm(left(recipe, weight, inputs if weighed else None).numpy() * scale)
    assert abs(found - errors[-1]) < 1e-3 * errors[-1]


def test_it_stops_where_the_error_rises_and_keeps_the_best() -> None:
    class Rounding(Quantiser):
        """Errors of turn 1, 2 and 3 that fall, and rise in the fourth: a fifth would be counted."""

        steps = (0.5, 0.25, 0.125, 0.5, 0.0)

        def __init__(self) -> None:
            vars(self)["seen"] = []

        def quantise(self, weight: Tensor) -> dict[str, Tensor]:
            step = self.steps[len(self.seen)]
            self.seen.append(step)
            return {"codes": weight if not step else (weight / step).round() * step}

        def dequantise(self, kept: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
            return kept["codes"]

    weight, quantiser = random(24, 32), Rounding()
    kept, A, B = read_recipe("int8+lq-lora:rank=2").correction.split(weight, quantiser, None)
    assert quantiser.seen == [0.5, 0.25, 0.125, 0.5]
    assert torch.equal(kept["codes"], (kept["codes"] / 0.125).round() * 0.125)
    assert float((weight - kept["codes"] - B @ A).abs().max()) < 0.125


@pytest.mark.parametrize("name", ["nf4", "int8", "hqq:bits=2"])
@pytest.mark.parametrize("seed", range(3))
def test_no_error_is_above_loftqs(name: str, seed: int) -> None:
    weight = random(96, 64, seed=seed)
    ours, theirs = (left(read_recipe(f"{name}+{one}:rank=8"), weight).norm() for one in ("lq-lora", "loftq"))
    assert ours <= theirs


def test_no_error_is_above_loftqs_on_real_weights() -> None:
    from safetensors.torch import load_file

    folder = resolve_base("sentence-transformers/all-MiniLM-L6-v2").path
    tensors = load_file(folder / "model.safetensors")
    names = [f"encoder.layer.0.{name}.weight" for name in ("attention.self.query", "intermediate.dense")]
    for name in names:
        weight = tensors[name].float()
        plain = read_recipe("nf4").quantiser
        alone = (weight - back(plain, plain.quantise(weight), weight)).double().norm()
        ours, theirs = (left(read_recipe(f"nf4+{one}:rank=16"), weight).norm() for one in ("lq-lora", "loftq"))
        assert ours <= theirs < alone, name
