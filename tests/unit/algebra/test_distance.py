"""The distance of a merge from the exact weighted sum, against full matrices in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lorabank.algebra.distance import distance_from_sum
from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack

MODULES = {"m": (6, 9), "n": (5, 4)}
WEIGHTS = torch.tensor([0.7, -0.3], dtype=torch.float64)


def no_weight(module: str) -> torch.Tensor:
    raise AssertionError("no adapter here has a row gain")


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    return {"a": make_adapter(MODULES, 2, 4.0, seed=0), "b": make_adapter({"m": (6, 9)}, 3, 2.0, seed=1)}


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {module: torch.randn(shape) for module, shape in MODULES.items()}


def full(factors: LoraFactors, module: str, base: dict[str, torch.Tensor]) -> np.ndarray:
    """``(diag(g) - 1) W + s B A`` in float64; 0 on other modules."""
    if module not in factors.A:
        return np.zeros(MODULES[module])
    B, A = factors.B[module].numpy().astype(np.float64), factors.A[module].numpy().astype(np.float64)
    made = factors.scaling[module] * B @ A
    if module in factors.gain:
        made += (factors.gain[module].numpy().astype(np.float64) - 1)[:, None] * base[module].numpy()
    return made


def expected(merged: dict[str, np.ndarray], adapters, base) -> dict[str, float]:
    found = {}
    for module in MODULES:
        exact = sum(w * full(one, module, base) for w, one in zip(WEIGHTS.tolist(), adapters.values(), strict=True))
        found[module] = np.linalg.norm(merged[module] - exact) / np.linalg.norm(exact)
    return found


def test_of_an_adapter(adapters, base, make_adapter) -> None:
    other = make_adapter(MODULES, 4, 1.0, seed=9)
    found = distance_from_sum(other, AdapterStack.build(adapters), WEIGHTS, no_weight)
    merged = {module: full(other, module, base) for module in MODULES}
    assert found == pytest.approx(expected(merged, adapters, base), rel=1e-7)


def test_of_delta_weights_of_full_rank(adapters, base) -> None:
    torch.manual_seed(3)
    dense = {module: torch.randn(shape) for module, shape in MODULES.items()}
    found = distance_from_sum(DenseDelta(dense), AdapterStack.build(adapters), WEIGHTS, no_weight)
    assert found == pytest.approx(expected({m: d.numpy() for m, d in dense.items()}, adapters, base), rel=1e-7)


@pytest.mark.parametrize("who", ["members", "merge", "both"])
def test_row_gains_are_part_of_both(adapters, base, make_adapter, who: str) -> None:
    torch.manual_seed(5)
    gained = {module: 1 + 0.3 * torch.randn(shape[0]) for module, shape in MODULES.items()}
    other = make_adapter(MODULES, 1, 1.0, seed=9)
    if who != "merge":
        adapters["a"] = replace(adapters["a"], gain=gained)
    if who != "members":
        other = replace(other, gain={module: gain.flip(0) for module, gain in gained.items()})
    found = distance_from_sum(other, AdapterStack.build(adapters), WEIGHTS, base.__getitem__)
    merged = {module: full(other, module, base) for module in MODULES}
    assert found == pytest.approx(expected(merged, adapters, base), rel=1e-6)


def test_the_exact_sum_is_as_far_as_float32_rounds(adapters) -> None:
    stack = AdapterStack.build(adapters)
    found = distance_from_sum(stack.combine(WEIGHTS.float()), stack, WEIGHTS, no_weight)
    assert all(value < 2e-7 for value in found.values())
    nudged = stack.combine(WEIGHTS.float())
    nudged.B["m"][0, 0] *= 1 + 1e-4
    assert 1e-6 < distance_from_sum(nudged, stack, WEIGHTS, no_weight)["m"] < 1e-3


def test_where_one_side_is_nothing(adapters, make_adapter) -> None:
    stack = AdapterStack.build(adapters)
    nothing = LoraFactors({}, {}, {})
    assert distance_from_sum(nothing, stack, WEIGHTS, no_weight) == {"m": 1.0, "n": 1.0}
    off = torch.zeros(2, dtype=torch.float64)
    assert distance_from_sum(nothing, stack, off, no_weight) == {"m": 0.0, "n": 0.0}
    elsewhere = make_adapter({"k": (3, 3)}, 1, 1.0, seed=2)
    assert distance_from_sum(elsewhere, stack, off, no_weight) == {"m": 0.0, "n": 0.0, "k": 1.0}
