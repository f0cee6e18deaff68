"""What a penalty is given: live parameters, earlier rows, and a basis of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.training.factor_groups import GroupedFactors
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.penalties.orthogonal import Orthogonal, OrthogonalNormalized
from tests.unit.training.plain import plain_layer

SHAPES = {"q": (6, 8), "v": (4, 8), "k": (6, 8), "o": (8, 6)}


@pytest.fixture
def layers() -> dict[str, LoraLinear]:
    torch.manual_seed(0)
    return {name: plain_layer(nn.Linear(d_in, d_out), 2, 1.0) for name, (d_out, d_in) in SHAPES.items()}


@pytest.fixture
def previous(make_adapter) -> AdapterStack:
    """Two earlier adapters with different modules; ``o`` was never adapted."""
    some = {"q": SHAPES["q"], "k": SHAPES["k"]}
    return AdapterStack.build(
        {
            "first": make_adapter(some, 3, 1.0, seed=1),
            "second": make_adapter({**some, "v": SHAPES["v"]}, 2, 1.0, seed=2),
        }
    )


def test_every_module_is_in_one_group_of_its_shape(layers, previous) -> None:
    groups = GroupedFactors(layers, previous, with_basis=True)()
    shapes = sorted((tuple(group.A_new.shape), tuple(group.B_new.shape)) for group in groups)
    assert shapes == [((1, 2, 6), (1, 8, 2)), ((1, 2, 8), (1, 4, 2)), ((2, 2, 8), (2, 6, 2))]


def test_the_penalty_over_groups_is_the_sum_over_modules(layers, previous) -> None:
    expected = 0.0
    for name in ("q", "k", "v"):
        rows = previous.modules[name].A.double().numpy()
        expected += float(np.abs(rows @ layers[name].lora_A.detach().double().numpy().T).sum())
    found = Orthogonal()(GroupedFactors(layers, previous, with_basis=False)())
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)


def test_the_basis_spans_the_earlier_rows(layers, previous) -> None:
    shares = []
    for name, layer in layers.items():
        if name not in previous.modules:
            shares.append(0.0)
            continue
        p = np.linalg.qr(previous.modules[name].A.double().numpy().T)[0]
        q = np.linalg.qr(layer.lora_A.detach().double().numpy().T)[0]
        shares.append(np.sum((p.T @ q) ** 2) / 2)
    found = OrthogonalNormalized()(GroupedFactors(layers, previous, with_basis=True)())
    assert float(found.detach()) == pytest.approx(np.mean(shares), abs=1e-6)


def test_dependent_earlier_rows_count_once(layers, make_adapter) -> None:
    one = make_adapter({"q": SHAPES["q"]}, 3, 1.0, seed=1)
    once = GroupedFactors({"q": layers["q"]}, AdapterStack.build({"a": one}), with_basis=True)
    twice = GroupedFactors({"q": layers["q"]}, AdapterStack.build({"a": one, "b": one}), with_basis=True)
    values = [float(OrthogonalNormalized()(grouped()).detach()) for grouped in (once, twice)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert twice()[0].A_prev.shape == (1, 6, 8)


def test_the_gradient_reaches_the_new_factors_alone(layers, previous) -> None:
    grouped = GroupedFactors(layers, previous, with_basis=True)
    (Orthogonal()(grouped()) + OrthogonalNormalized()(grouped())).backward()
    assert all(layers[name].lora_A.grad.any() for name in ("q", "k", "v"))
    assert not layers["o"].lora_A.grad.any()
    assert all(layer.base.weight.grad is None for layer in layers.values())
    assert all(factors.A.grad is None for factors in previous.modules.values())


def test_the_groups_follow_the_parameters(layers, previous) -> None:
    grouped = GroupedFactors(layers, previous, with_basis=False)
    before = float(Orthogonal()(grouped()).detach())
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_A.mul_(3)
    assert float(Orthogonal()(grouped()).detach()) == pytest.approx(3 * before, rel=1e-5)


def test_the_first_task_has_no_earlier_rows(layers) -> None:
    for group in GroupedFactors(layers, None, with_basis=True)():
        assert group.A_prev.shape[1] == group.basis_prev.shape[1] == 0


def factors_of(layers) -> LoraFactors:
    A = {name: layer.lora_A.detach() for name, layer in layers.items()}
    B = {name: layer.lora_B.detach() for name, layer in layers.items()}
    return LoraFactors(A, B, {name: layer.scaling for name, layer in layers.items()})


def test_the_report_is_that_of_each_module_and_adapter(layers, previous) -> None:
    """Mean squared cosine of the principal angles, over the modules that an adapter has; rows left in the tightest."""
    expected = {}
    for k, (name, r) in enumerate((("first", 3), ("second", 2))):
        shares = []
        for module, factors in previous.modules.items():
            rows = factors.A[factors.owner == k].double().numpy()
            if len(rows):
                angles = subspace_angles(rows.T, layers[module].lora_A.detach().double().numpy().T)
                shares.append(np.sum(np.cos(angles) ** 2) / min(r, 2))
        expected[name] = np.mean(shares)
    report = GroupedFactors(layers, previous, with_basis=False).report(factors_of(layers))
    assert report["overlap"] == pytest.approx(expected, abs=1e-6)
    assert report["capacity_left"] == pytest.approx((8 - 3 - 2 - 2) / 8)  # q and k hold all three adapters
    first = GroupedFactors(layers, None, with_basis=False).report(factors_of(layers))
    assert first["overlap"] == {}
    assert first["capacity_left"] == pytest.approx((6 - 2) / 6)  # o is the narrowest
