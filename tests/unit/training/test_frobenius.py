"""The squared overlap and its gradient against a loop over modules and pairs of rows, by rows and by Gram matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.training.penalties.base import FactorGroup
from lorabank.training.penalties.frobenius import Frobenius

R_NEW, D_IN, D_OUT = 3, 12, 4


def random_group(rows: int, *, modules: int = 3, seed: int = 0) -> FactorGroup:
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(modules, rows, D_IN, generator=generator)
    return FactorGroup(
        torch.randn(modules, R_NEW, D_IN, generator=generator, requires_grad=True),
        torch.randn(modules, D_OUT, R_NEW, generator=generator, requires_grad=True),
        previous,
        previous[:, :0],
    )


def by_loop(group: FactorGroup) -> tuple[float, np.ndarray]:
    new, previous = group.A_new.detach().double().numpy(), group.A_prev.double().numpy()
    total, gradient = 0.0, np.zeros_like(new)
    for m in range(new.shape[0]):
        for earlier in previous[m]:
            for j, row in enumerate(new[m]):
                product = float(np.dot(earlier, row))
                total += product**2
                gradient[m, j] += 2 * product * earlier
    return total, gradient


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 40])  # from 7 rows of 12 entries the Gram matrix is smaller
def test_it_is_the_sum_of_squared_products(rows: int) -> None:
    groups = [random_group(rows, seed=1), random_group(5, modules=2, seed=2)]
    value = Frobenius()(groups)
    (3 * value).backward()
    found = [by_loop(group) for group in groups]
    assert float(value.detach()) == pytest.approx(sum(total for total, _ in found), rel=1e-6)
    for group, (_, gradient) in zip(groups, found, strict=True):
        np.testing.assert_allclose(group.A_new.grad.numpy(), 3 * gradient, rtol=1e-5, atol=1e-4)
        assert group.B_new.grad is None


@pytest.mark.parametrize("rows", [4, 30])
def test_it_follows_the_new_adapter(rows: int) -> None:
    """The same penalty is asked at every step; what it keeps is of the earlier rows alone."""
    penalty, group = Frobenius(), random_group(rows)
    for _ in range(3):
        assert float(penalty([group]).detach()) == pytest.approx(by_loop(group)[0], rel=1e-6)
        with torch.no_grad():
            group.A_new.mul_(-1.5).add_(0.1)


def test_what_it_keeps_goes_with_the_rows() -> None:
    penalty = Frobenius()
    for seed in range(5):
        group = random_group(30, seed=seed)
        assert float(penalty([group]).detach()) == pytest.approx(by_loop(group)[0], rel=1e-6)
        del group
    assert len(penalty._grams) == 0


@pytest.mark.parametrize("rows", [4, 30])
def test_a_bfloat16_adapter_is_judged_in_float32(rows: int) -> None:
    exact = random_group(rows)
    rough = FactorGroup(*(t.detach().bfloat16() for t in (exact.A_new, exact.B_new, exact.A_prev, exact.basis_prev)))
    value = Frobenius()([rough])
    assert value.dtype == torch.float32
    same = FactorGroup(*(t.float() for t in (rough.A_new, rough.B_new, rough.A_prev, rough.basis_prev)))
    assert float(value) == pytest.approx(by_loop(same)[0], rel=1e-5)
