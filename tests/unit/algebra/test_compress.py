"""Compression against the truncated SVD of the full matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.algebra.compress import compress
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack


def dense(adapters: dict[str, LoraFactors], module: str, weights: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """``sum_k w_k s_k B_k A_k`` in float64."""
    total = np.zeros(shape)
    for w, factors in zip(weights.tolist(), adapters.values(), strict=True):
        if module in factors.A:
            total += w * factors.scaling[module] * (factors.B[module].double() @ factors.A[module].double()).numpy()
    return total


def test_modules_of_several_shapes_and_ranks_are_compressed_each_for_itself(make_adapter) -> None:
    shapes = {"q": (7, 11), "up": (13, 7), "v": (7, 11), "o": (7, 11)}
    some = {name: shape for name, shape in shapes.items() if name != "o"}
    adapters = {"a": make_adapter(shapes, 2, 3.0, seed=1), "b": make_adapter(some, 3, 1.0, seed=2)}
    weights = torch.tensor([1.0, -0.5])
    cut = compress(AdapterStack.build(adapters).combine(weights), 3)
    assert list(cut.factors.A) == list(shapes)
    assert cut.factors.A["o"].shape == (2, 11)  # it has no more
    for module, shape in shapes.items():
        full = dense(adapters, module, weights, shape)
        u, s, vt = np.linalg.svd(full, full_matrices=False)
        found = cut.factors.delta(module).double().numpy()
        assert np.abs(found - (u[:, :3] * s[:3]) @ vt[:3]).max() <= 1e-5 * np.abs(full).max()
        assert cut.relative_error[module] == pytest.approx(np.linalg.norm(s[3:]) / np.linalg.norm(s), abs=1e-6)


@pytest.mark.parametrize("max_rank", [1, 3, 6, 40])
@pytest.mark.parametrize("shape", [(7, 11), (11, 7), (9, 9)])
def test_compression_is_the_truncated_svd_of_the_full_matrix(make_adapter, shape, max_rank: int) -> None:
    adapters = {"a": make_adapter({"m": shape}, 2, 3.0, seed=1), "b": make_adapter({"m": shape}, 9, 1.0, seed=2)}
    weights = torch.tensor([1.0, -0.5])
    full = dense(adapters, "m", weights, shape)
    u, s, vt = np.linalg.svd(full, full_matrices=False)
    expected = (u[:, :max_rank] * s[:max_rank]) @ vt[:max_rank]

    cut = compress(AdapterStack.build(adapters).combine(weights), max_rank)
    found = cut.factors.delta("m").double().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(full).max()
    assert cut.factors.A["m"].shape[0] == min(max_rank, *shape)
    error = np.linalg.norm(full - expected) / np.linalg.norm(full)
    assert cut.relative_error["m"] == pytest.approx(error, abs=1e-6)
    assert np.linalg.norm(full - found) / np.linalg.norm(full) == pytest.approx(error, abs=1e-5)


def test_compressing_nothing_but_zeros_costs_nothing() -> None:
    zero = LoraFactors({"m": torch.randn(3, 6)}, {"m": torch.zeros(5, 3)}, {"m": 2.0})
    cut = compress(zero, 2)
    assert cut.relative_error["m"] == 0.0
    assert torch.equal(cut.factors.delta("m"), torch.zeros(5, 6))
