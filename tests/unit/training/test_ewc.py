"""The EWC penalty against a loop, and how an anchor becomes part of the groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.models.facts.fisher import Anchor, Importance
from lorabank.training.factor_groups import GroupedFactors
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.penalties.base import FactorGroup
from lorabank.training.penalties.ewc import EWC
from tests.unit.training.plain import plain_layer

SHAPES = {"q": (6, 8), "v": (4, 8), "k": (6, 8)}


@pytest.fixture
def layers() -> dict[str, LoraLinear]:
    torch.manual_seed(0)
    layers = {name: plain_layer(nn.Linear(d_in, d_out), 2, 2.0) for name, (d_out, d_in) in SHAPES.items()}
    for layer in layers.values():
        nn.init.normal_(layer.lora_B)
    return layers


def anchor_for(layers: dict[str, LoraLinear], scaling: float) -> Anchor:
    generator = torch.Generator().manual_seed(1)

    def like(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    return Anchor(
        LoraFactors(
            {name: like(layer.lora_A) for name, layer in layers.items()},
            {name: like(layer.lora_B) for name, layer in layers.items()},
            dict.fromkeys(layers, scaling),
        ),
        Importance(
            {name: like(layer.lora_A).abs() for name, layer in layers.items()},
            {name: like(layer.lora_B).abs() for name, layer in layers.items()},
        ),
    )


def test_penalty_and_gradient_are_those_of_a_loop(layers) -> None:
    anchor = anchor_for(layers, 2.0)
    value = EWC()(GroupedFactors(layers, None, with_basis=False, anchor=anchor)())
    total = 0.0
    for name, layer in layers.items():
        for live, start, importance in (
            (layer.lora_A, anchor.factors.A[name], anchor.importance.A[name]),
            (layer.lora_B, anchor.factors.B[name], anchor.importance.B[name]),
        ):
            entries = (tensor.detach().flatten().tolist() for tensor in (live, start, importance))
            for theta, star, f in zip(*entries, strict=True):
                total += 0.5 * f * (theta - star) ** 2
    assert float(value.detach()) == pytest.approx(total, rel=1e-5)
    value.backward()
    for name, layer in layers.items():
        expected = anchor.importance.A[name] * (layer.lora_A.detach() - anchor.factors.A[name])
        torch.testing.assert_close(layer.lora_A.grad, expected)
        expected = anchor.importance.B[name] * (layer.lora_B.detach() - anchor.factors.B[name])
        torch.testing.assert_close(layer.lora_B.grad, expected)


def test_another_scaling_measures_the_same_change_of_the_delta_weight(layers) -> None:
    """B is stored under s* and trained under s = 2: ``s B = s* B*`` is no change, and F counts in units of B*."""
    anchor = anchor_for(layers, 0.5)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_A.copy_(anchor.factors.A[name])
            layer.lora_B.copy_(anchor.factors.B[name] * 0.25)
    groups = GroupedFactors(layers, None, with_basis=False, anchor=anchor)
    assert float(EWC()(groups()).detach()) == 0
    with torch.no_grad():
        layers["v"].lora_B[1, 0] += 0.1  # 0.4 in the units of B*
    expected = 0.5 * float(anchor.importance.B["v"][1, 0]) * 0.4**2
    assert float(EWC()(groups()).detach()) == pytest.approx(expected, rel=1e-4)


def test_a_module_the_anchor_does_not_know_is_free(layers) -> None:
    anchor = anchor_for({"q": layers["q"]}, 2.0)
    groups = GroupedFactors(layers, None, with_basis=False, anchor=anchor)
    EWC()(groups()).backward()
    assert bool(layers["q"].lora_A.grad.any())
    assert all(layers[name].lora_A.grad is None or not layers[name].lora_A.grad.any() for name in ("v", "k"))


def test_the_first_task_pays_nothing(layers) -> None:
    value = EWC()(GroupedFactors(layers, None, with_basis=False)())
    value.backward()
    assert float(value.detach()) == 0
    assert not layers["q"].lora_A.grad.any()


def test_a_quadratic_task_ends_at_the_weighted_mean() -> None:
    """min 1/2 h (x - t)^2 + lambda/2 F (x - x*)^2 is at (h t + lambda F x*) / (h + lambda F)."""
    A = torch.zeros(1, 1, 1, requires_grad=True)
    nothing = torch.zeros(1, 0, 1)
    group = FactorGroup(
        A,
        torch.ones(1, 1, 1),
        nothing,
        nothing,
        torch.full((1, 1, 1), 3.0),
        torch.ones(1, 1, 1),
        torch.full((1, 1, 1), 0.5),
        torch.ones(1, 1, 1),
    )
    optimizer = torch.optim.SGD([A], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        ((A - 1).square().sum() + 4 * EWC()([group])).backward()
        optimizer.step()
    assert float(A.detach()) == pytest.approx((2 * 1 + 4 * 0.5 * 3) / (2 + 4 * 0.5), rel=1e-4)
