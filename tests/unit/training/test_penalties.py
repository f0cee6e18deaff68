"""Penalties and their gradients against triple loops, principal angles and expectations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from lorabank.training.penalties.base import FactorGroup
from lorabank.training.penalties.norm import Norm
from lorabank.training.penalties.orthogonal import Orthogonal, OrthogonalNormalized

R_NEW, R_PREV, D_IN, D_OUT = 3, 5, 9, 4


def random_group(modules: int, d_in: int = D_IN, *, r_prev: int = R_PREV, seed: int = 0) -> FactorGroup:
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(modules, r_prev, d_in, generator=generator)
    bases = [np.linalg.qr(rows.numpy().T)[0].T if r_prev else rows.numpy() for rows in previous]
    return FactorGroup(
        torch.randn(modules, R_NEW, d_in, generator=generator, requires_grad=True),
        torch.randn(modules, D_OUT, R_NEW, generator=generator, requires_grad=True),
        previous,
        torch.from_numpy(np.stack(bases)).float(),
    )


@pytest.fixture
def groups() -> list[FactorGroup]:
    """Two shapes, as in a decoder whose value projection is narrower; one module has no earlier rows."""
    first, second = random_group(2, seed=1), random_group(1, d_in=6, r_prev=2, seed=2)
    first.A_prev[1] = 0
    first.basis_prev[1] = 0
    return [first, second]


def test_orthogonal_is_the_sum_of_absolute_products(groups) -> None:
    total = 0.0
    gradients = [np.zeros(tuple(group.A_new.shape)) for group in groups]
    for group, gradient in zip(groups, gradients, strict=True):
        new, previous = group.A_new.detach().double().numpy(), group.A_prev.double().numpy()
        for m in range(new.shape[0]):
            for i, j in itertools.product(range(previous.shape[1]), range(R_NEW)):
                product = sum(previous[m, i, d] * new[m, j, d] for d in range(new.shape[2]))
                total += abs(product)
                for d in range(new.shape[2]):
                    gradient[m, j, d] += math.copysign(1, product) * previous[m, i, d] if product else 0
    value = Orthogonal()(groups)
    assert float(value.detach()) == pytest.approx(total, rel=1e-6)
    value.backward()
    for group, gradient in zip(groups, gradients, strict=True):
        np.testing.assert_allclose(group.A_new.grad.numpy(), gradient, rtol=1e-6, atol=1e-6)
        assert group.B_new.grad is None


def test_norm_is_the_sum_of_frobenius_norms(groups) -> None:
    total = 0.0
    value = Norm()(groups)
    value.backward()
    for group in groups:
        for factor in (group.A_new, group.B_new):
            for m in range(factor.shape[0]):
                length = math.sqrt(sum(entry**2 for entry in factor[m].detach().flatten().tolist()))
                total += length
                torch.testing.assert_close(factor.grad[m], factor[m].detach() / length, rtol=1e-6, atol=1e-6)
    assert float(value.detach()) == pytest.approx(total, rel=1e-6)


def overlap_by_angles(new: Tensor, previous: Tensor) -> float:
    """Sum of the squared cosines of the principal angles over the rank of the new adapter."""
    angles = subspace_angles(new.detach().double().numpy().T, previous.double().numpy().T)
    return float(np.sum(np.cos(angles) ** 2)) / new.shape[0]


def test_normalized_is_the_mean_squared_cosine_of_the_principal_angles(groups) -> None:
    first, second = groups
    shares = [overlap_by_angles(first.A_new[0], first.A_prev[0]), overlap_by_angles(second.A_new[0], second.A_prev[0])]
    expected = (shares[0] + 0 + shares[1]) / 3
    assert float(OrthogonalNormalized()(groups).detach()) == pytest.approx(expected, abs=1e-6)


def test_normalized_gradient_equals_finite_differences() -> None:
    """Against a loop over modules with the projector on the row space written out, in float64."""
    group = random_group(2, seed=3)
    OrthogonalNormalized()([group]).backward()

    def value(new: np.ndarray) -> float:
        total = 0.0
        for m in range(2):
            q = np.linalg.qr(new[m].T)[0]
            p = np.linalg.qr(group.A_prev[m].double().numpy().T)[0]
            total += np.sum((p.T @ q) ** 2) / R_NEW
        return total / 2

    new = group.A_new.detach().double().numpy()
    step = 1e-6
    for m, j, d in itertools.product(range(2), range(R_NEW), range(D_IN)):
        up, down = new.copy(), new.copy()
        up[m, j, d] += step
        down[m, j, d] -= step
        slope = (value(up) - value(down)) / (2 * step)
        assert float(group.A_new.grad[m, j, d]) == pytest.approx(slope, abs=1e-6)


def test_normalized_does_not_change_with_scale_or_recombination() -> None:
    group = random_group(2, seed=4)
    value = float(OrthogonalNormalized()([group]).detach())
    mix = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0], [1.0, 1.0, 1.0]])
    for changed in (1e-3 * group.A_new, 50 * group.A_new, mix @ group.A_new):
        other = FactorGroup(changed, group.B_new, group.A_prev, group.basis_prev)
        assert float(OrthogonalNormalized()([other]).detach()) == pytest.approx(value, abs=1e-5)
    # while the reference's penalty is met by shrinking
    small = FactorGroup(1e-3 * group.A_new, group.B_new, group.A_prev, group.basis_prev)
    assert float(Orthogonal()([small]).detach()) < 2e-3 * float(Orthogonal()([group]).detach())


def test_normalized_takes_rows_that_span_nothing_new() -> None:
    """Rows of 0 and rows that repeat another: by the angles of the space that they span, over the same rank."""
    group = random_group(3, seed=5)
    new = group.A_new.detach().clone()
    new[0] = 0
    new[1, 1] = 0
    new[2, 1] = -3 * new[2, 0]
    own = FactorGroup(new.requires_grad_(), group.B_new, group.A_prev, group.basis_prev)
    value = OrthogonalNormalized()([own])
    spans = [new[1][[0, 2]], new[2][[0, 2]]]
    shares = [2 / R_NEW * overlap_by_angles(span, group.A_prev[k]) for k, span in enumerate(spans, 1)]
    assert float(value.detach()) == pytest.approx(sum(shares) / 3, abs=1e-6)
    value.backward()
    assert bool(new.grad.isfinite().all())
    assert not new.grad[0].any()


def test_normalized_knows_its_ends() -> None:
    eye = torch.eye(8)
    none = torch.zeros(1, D_OUT, 2)
    inside = FactorGroup(3 * eye[None, :2], none, eye[None, :4], eye[None, :4])
    outside = FactorGroup(3 * eye[None, 5:7], none, eye[None, :4], eye[None, :4])
    half = FactorGroup(3 * eye[None, 3:5], none, eye[None, :4], eye[None, :4])
    found = [float(OrthogonalNormalized()([group])) for group in (inside, outside, half)]
    assert found == pytest.approx([1, 0, 0.5], abs=1e-6)


def test_normalized_is_the_share_of_the_space_for_random_factors() -> None:
    """In expectation dim(Q) / d_in; the spread over 400 modules is a tenth of the tolerance."""
    group = random_group(400, d_in=40, r_prev=12, seed=5)
    assert float(OrthogonalNormalized()([group]).detach()) == pytest.approx(12 / 40, abs=0.02)


@pytest.mark.parametrize("penalty", [Orthogonal(), OrthogonalNormalized()])
def test_the_first_task_pays_nothing(penalty) -> None:
    group = random_group(2, r_prev=0)
    value = penalty([group])
    assert float(value.detach()) == 0
    value.backward()
    assert not bool(group.A_new.grad.any())


@pytest.mark.parametrize("penalty", [Orthogonal(), OrthogonalNormalized(), Norm()])
def test_a_bfloat16_adapter_is_judged_in_float32(penalty) -> None:
    exact = random_group(2, seed=6)
    tensors = [exact.A_new.detach(), exact.B_new.detach(), exact.A_prev, exact.basis_prev]
    rough = FactorGroup(*(tensor.bfloat16() for tensor in tensors))
    same = FactorGroup(*(tensor.bfloat16().float() for tensor in tensors))
    assert penalty([rough]).dtype == torch.float32
    assert float(penalty([rough])) == pytest.approx(float(penalty([same])), rel=1e-5)


def test_default_weights_are_the_papers() -> None:
    assert (Orthogonal.default_weight, Norm.default_weight) == (0.5, 0.0)
