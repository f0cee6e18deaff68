"""N-LoRA's two penalties and their gradients against loops and plain autograd."""

from __future__ import annotations

import itertools

import pytest
import torch

from lorabank.training.penalties.base import FactorGroup
from lorabank.training.penalties.l1 import L1


def random_group(modules: int, d_in: int, d_out: int, *, seed: int, r: int = 3) -> FactorGroup:
    generator = torch.Generator().manual_seed(seed)
    none = torch.zeros(modules, 0, d_in)
    return FactorGroup(
        torch.randn(modules, r, d_in, generator=generator, requires_grad=True),
        torch.randn(modules, d_out, r, generator=generator, requires_grad=True),
        none,
        none,
    )


def test_l1_is_the_sum_over_every_entry_of_the_delta_weights() -> None:
    groups = [random_group(2, 5, 4, seed=1), random_group(1, 3, 6, seed=2)]
    total = 0.0
    for group in groups:
        A, B = group.A_new.detach().double(), group.B_new.detach().double()
        for m, o, i in itertools.product(range(A.shape[0]), range(B.shape[1]), range(A.shape[2])):
            total += abs(sum(float(B[m, o, k]) * float(A[m, k, i]) for k in range(3)))
    value = L1()(groups)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(total, rel=1e-6)
    (3 * value).backward()
    for group in groups:
        A, B = (t.detach().double().requires_grad_() for t in (group.A_new, group.B_new))
        (3 * torch.einsum("mok,mki->moi", B, A).abs().sum()).backward()
        torch.testing.assert_close(group.A_new.grad.double(), A.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(group.B_new.grad.double(), B.grad, rtol=1e-5, atol=1e-5)


def test_the_gradient_moves_a_new_adapter_to_sparsity() -> None:
    group = random_group(1, 6, 6, seed=5)
    optimizer = torch.optim.Adam([group.A_new, group.B_new], lr=0.02)
    target = torch.zeros(6, 6)
    target[0, 0] = 2.0
    for _ in range(600):
        loss = (group.B_new[0] @ group.A_new[0] - target).square().sum() + 0.1 * L1()([group])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    delta = (group.B_new[0] @ group.A_new[0]).detach()
    assert float(delta[0, 0]) == pytest.approx(1.95, abs=0.02)  # 2 (delta - 2) + 0.1 = 0
    delta[0, 0] = 0
    assert float(delta.abs().max()) < 0.02


def test_a_bfloat16_adapter_is_judged_in_float32() -> None:
    exact = random_group(2, 6, 6, seed=6)
    rough = FactorGroup(*(t.detach().bfloat16() for t in (exact.A_new, exact.B_new, exact.A_prev, exact.basis_prev)))
    same = FactorGroup(*(t.float() for t in (rough.A_new, rough.B_new, rough.A_prev, rough.basis_prev)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = L1()([rough])
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(L1()([same])), rel=1e-5)
