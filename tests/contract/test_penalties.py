"""What every penalty of the table promises."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from lorabank.core.shelves import PENALTIES
from lorabank.training.penalties.base import FactorGroup, Penalty


@pytest.fixture(params=sorted(PENALTIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def penalty(name: str) -> Penalty:
    return PENALTIES.load(name)()


def group(modules: int = 3, d_in: int = 10, *, earlier: int = 4, seed: int = 0) -> FactorGroup:
    torch.manual_seed(seed)
    previous = torch.randn(modules, earlier, d_in)
    basis = torch.linalg.qr(previous.mT)[0].mT if earlier else previous
    A, B = torch.randn(modules, 2, d_in), torch.randn(modules, 5, 2)
    held = (A + torch.randn_like(A), B + torch.randn_like(B), torch.rand_like(A), torch.rand_like(B))
    return FactorGroup(
        A.requires_grad_(), B.requires_grad_(), previous.requires_grad_(), basis, *(held if earlier else ())
    )


def reordered(old: FactorGroup, order: list[int]) -> FactorGroup:
    parts = (getattr(old, field.name) for field in fields(old))
    return FactorGroup(*(None if part is None else part[order] for part in parts))


def test_it_has_a_default_weight(penalty: Penalty) -> None:
    assert math.isfinite(penalty.default_weight)
    assert penalty.default_weight >= 0


def test_it_is_a_float32_scalar_that_is_not_negative(penalty: Penalty) -> None:
    value = penalty([group()])
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert float(value.detach()) >= 0


def test_modules_and_groups_may_come_in_any_order(penalty: Penalty) -> None:
    first, second = group(seed=1), group(d_in=7, seed=2)
    value = penalty([first, second]).detach()
    torch.testing.assert_close(penalty([second, reordered(first, [2, 0, 1])]).detach(), value)


def test_a_group_may_be_split(penalty: Penalty) -> None:
    """Which modules share a shape is the base's accident."""
    whole = group()
    parts = [reordered(whole, [0]), reordered(whole, [1, 2])]
    torch.testing.assert_close(penalty(parts).detach(), penalty([whole]).detach())


def test_the_first_task_pays_nothing_for_earlier_ones(penalty: Penalty) -> None:
    without, beside = group(earlier=0), group()
    beside = replace(beside, A_new=without.A_new, B_new=without.B_new)
    alone, together = float(penalty([without]).detach()), float(penalty([beside]).detach())
    assert alone in (0.0, together)  # a penalty on the new adapter itself does not know the earlier ones


def test_rows_of_zeros_change_nothing(penalty: Penalty) -> None:
    """Modules of one group may have fewer earlier rows than others; they are filled up with zeros."""
    whole = group()
    filled = replace(
        whole,
        A_prev=torch.nn.functional.pad(whole.A_prev, (0, 0, 0, 3)),
        basis_prev=torch.nn.functional.pad(whole.basis_prev, (0, 0, 0, 3)),
    )
    torch.testing.assert_close(penalty([filled]).detach(), penalty([whole]).detach())


def test_its_gradient_is_finite_and_pulls_it_down(penalty: Penalty) -> None:
    whole = group()
    value = penalty([whole])
    value.backward()
    moved = []
    for factor in (whole.A_new, whole.B_new):
        slope = factor.grad if factor.grad is not None else torch.zeros_like(factor)
        assert bool(torch.isfinite(slope).all())
        moved.append(factor.detach() - 1e-3 * slope)
    lower = penalty([replace(whole, A_new=moved[0], B_new=moved[1])])
    assert float(lower.detach()) < float(value.detach())


def test_a_task_can_be_trained_under_it(lab, copy, name: str) -> None:
    result = lab.add(copy("olora", 1), "two", penalty=name, penalty_weight=0.25)
    assert result.adapter.penalties == {name: 0.25}
    assert math.isfinite(result.adapter.metrics[f"final_{name}"])
