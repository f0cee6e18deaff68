"""Variants that project the gradient of the whole weight, in float64, against their published updates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.training.methods import chosen_methods
from tests.unit.training.variants.test_windows import RATE, R, Run, loss, plain, same


def dense_gradients(weights: list[Tensor], number: int) -> list[Tensor]:
    model = plain()
    with torch.no_grad():
        for layer, weight in zip(model.layers, weights, strict=True):
            layer.weight.copy_(weight)
    found = torch.autograd.grad(loss(model, number), [layer.weight for layer in model.layers])
    return list(found)


def test_galore_is_adam_on_the_projected_gradient_of_the_dense_weight() -> None:
    """Algorithm 2 of the paper on whole weights, with the moments kept when P changes."""
    run = Run("galore", 12, windows=3, scale=0.5).train()
    start = [layer.weight.detach().clone() for layer in plain().layers]
    weights, P = [w.clone() for w in start], [torch.empty(0)] * 3
    shapes = [(w.shape[0], R) if w.shape[0] >= w.shape[1] else (R, w.shape[1]) for w in start]
    first, second = ([torch.zeros(*shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    for t in range(1, 13):
        for k, G in enumerate(dense_gradients(weights, t)):
            tall = G.shape[0] >= G.shape[1]
            if (t - 1) % 4 == 0:
                U, _, V = torch.linalg.svd(G, full_matrices=False)
                P[k] = V[:R] if tall else U[:, :R]
            low = G @ P[k].mT if tall else P[k].mT @ G
            first[k] = 0.9 * first[k] + 0.1 * low
            second[k] = 0.999 * second[k] + 0.001 * low**2
            step = first[k] / (1 - 0.9**t) / ((second[k] / (1 - 0.999**t)).sqrt() + 1e-8)
            weights[k] = weights[k] - RATE * 0.5 * (step @ P[k] if tall else P[k] @ step)
    for found, weight, before in zip(run.delta(), weights, start, strict=True):
        same(found, weight - before, 1e-8)


def test_flora_keeps_its_momentum_in_a_subspace() -> None:
    """On whole weights, with the bases of the run: the momentum alone, Adafactor's size, clipping and scale."""
    run, P = Run("flora", 12, windows=3), {}
    P[0] = [basis.clone() for basis in run.parametrization.bases()]

    def keep(number: int) -> None:
        P[number] = [basis.clone() for basis in run.parametrization.bases()]

    run.train(keep)
    assert all(torch.equal(a, b) for a, b in zip(P[0], P[3], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(P[3], P[4], strict=True))
    start = [layer.weight.detach().clone() for layer in plain().layers]
    weights = [w.clone() for w in start]
    m: list[Tensor | float] = [0.0, 0.0, 0.0]
    v = [0.0, 0.0, 0.0]
    for t in range(1, 13):
        kept = 1 - t**-0.8
        for k, G in enumerate(dense_gradients(weights, t)):
            basis, tall = P[t - 1][k], G.shape[0] >= G.shape[1]
            if t in (5, 9):
                old = P[t - 2][k]
                m[k] = m[k] @ old @ basis.mT if tall else basis.mT @ old @ m[k]
            low = G @ basis.mT if tall else basis.mT @ G
            m[k] = 0.9 * m[k] + 0.1 * low
            v[k] = kept * v[k] + (1 - kept) * float(low.square().sum()) / G.numel()
            update = (m[k] @ basis if tall else basis @ m[k]) / math.sqrt(v[k])
            update = update / max(1.0, float(update.square().mean().sqrt()))
            size = max(1e-3, float(start[k].float().square().mean().sqrt()))
            weights[k] = weights[k] - RATE * size * update
    for found, weight, before in zip(run.delta(), weights, start, strict=True):
        same(found, weight - before, 1e-9)


def test_the_projections_of_flora_are_the_identity_on_average() -> None:
    run = Run("flora", 12)
    total = torch.zeros(6, 6, dtype=torch.float64)
    for window in range(4000):
        run.parametrization.draw(window)
        P = run.parametrization.basis(0)
        total += P.mT @ P / 4000
    same(total, torch.eye(6, dtype=torch.float64), 0.1)


@pytest.mark.parametrize("variant", ["galore", "flora"])
def test_weight_decay_is_no_adapter(variant: str) -> None:
    """Known before any row is read."""
    config = TrainConfig(variant=variant, strategy="isolated", weight_decay=0.01)
    with pytest.raises(ConfigError, match="weight decay shrinks the whole weight") as caught:
        chosen_methods(config)
    assert caught.value.hint == "--weight-decay 0"
