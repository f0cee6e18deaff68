"""The quadratic problem against every set of free coefficients."""

from __future__ import annotations

import itertools

import pytest
import torch

from lorabank.algebra.nonnegative import nonnegative_quadratic


def value(H: torch.Tensor, q: torch.Tensor, v: torch.Tensor) -> float:
    return float(v @ H @ v / 2 + q @ v)


def smallest(H: torch.Tensor, q: torch.Tensor) -> float:
    """The least value among the minimisers over each set of free coefficients that are not negative."""
    found = [0.0]
    for chosen in itertools.product([False, True], repeat=len(q)):
        free, v = torch.tensor(chosen), torch.zeros_like(q)
        v[free] = torch.linalg.pinv(H[free][:, free]) @ -q[free]
        if bool((v >= -1e-12).all()):
            found.append(value(H, q, v))
    return min(found)


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_best_of_all_sets(seed: int) -> None:
    torch.manual_seed(seed)
    n, d = 1 + seed % 5, 1 + seed % 7  # with n > d the matrix is singular
    G, g = torch.randn(n, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    if seed % 3 == 0 and n > 1:
        G[1] = 2 * G[0]
    H, q = G @ G.T, G @ g
    v = nonnegative_quadratic(H, q)
    assert bool((v >= 0).all())
    assert value(H, q, v) == pytest.approx(smallest(H, q), abs=1e-9)


def test_no_coefficients_and_zeros() -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    assert nonnegative_quadratic(torch.zeros(0, 0), nothing).shape == (0,)
    assert nonnegative_quadratic(torch.zeros(2, 2), torch.zeros(2)).tolist() == [0, 0]
