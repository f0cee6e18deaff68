"""The mathematics of Online-LoRA: plateaus of a loss, hard rows, and the importance of an adapter's entries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lorabank.models.facts.fisher import Importance
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.strategies.online_lora import LossWindow, averaged, hardest, importance


def _plateaus(losses: list[float], *, length: int = 3, mean: float = 0.5, variance: float = 0.01) -> list[int]:
    """The numbers of the losses, from 1, at which a plateau is found and taken."""
    window, found = LossWindow(), []
    for number, loss in enumerate(losses, start=1):
        window = window.seen(loss, length)
        if window.flat(length, mean, variance):
            window = window.settled()
            found.append(number)
    return found


def test_a_plateau_is_found_once_and_again_after_a_peak() -> None:
    assert _plateaus([2.0, 1.0, 0.3, 0.3]) == []  # mean 0.53
    assert _plateaus([2.0, 1.0, 0.3, 0.3, 0.3]) == [5]
    assert _plateaus([2.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]) == [5]
    assert _plateaus([0.3, 0.3, 0.3, 0.3, 2.0, 0.3, 0.3, 0.3]) == [3, 8]


def test_a_plateau_needs_a_full_window_a_low_mean_and_a_small_variance() -> None:
    assert _plateaus([0.1, 0.1]) == []
    assert _plateaus([0.6, 0.6, 0.6, 0.6]) == []
    assert _plateaus([0.0, 0.4, 0.0, 0.4]) == []  # variance 0.0356
    assert _plateaus([0.2, 0.3, 0.4]) == [3]  # variance 0.00667


def test_a_peak_is_a_mean_above_the_flat_one_by_a_deviation() -> None:
    flat = LossWindow((0.1, 0.3), peaked=False, mean=0.2, variance=0.01)
    assert not flat.seen(0.299, 2).peaked  # mean 0.2995, and 0.2 + 0.1 is the bound
    assert flat.seen(0.31, 2).peaked


def test_the_hardest_rows_come_first_and_of_equal_ones_the_earlier() -> None:
    assert hardest([0.1, 3.0, 2.0, 3.0], 3) == [1, 3, 2]
    assert hardest([0.1], 4) == [0]


class _Model(nn.Module):
    """One adapted matrix over vectors, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        base = nn.Linear(5, 4)
        factors = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2)), None
        self.layer = LoraLinear(base, factors, 0.5, 0.0)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.head(torch.tanh(self.layer(x))))


def _loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs["x"]).logits, inputs["labels"])


def test_the_importance_is_the_sum_of_squared_gradients_at_the_models_own_answers() -> None:
    model = _Model()
    x = torch.randn(3, 5)
    rows = [{"x": x[i : i + 1], "labels": torch.tensor([0])} for i in range(3)]
    found = importance(model, {"layer": model.layer}, rows, _loss)

    W, bias = (p.detach().double() for p in (model.layer.base.weight, model.layer.base.bias))
    H, c = (p.detach().double() for p in model.head.parameters())
    A = model.layer.lora_A.detach().double().requires_grad_()
    B = model.layer.lora_B.detach().double().requires_grad_()
    of_A, of_B = torch.zeros_like(A), torch.zeros_like(B)
    for row in x.double():
        logits = H @ torch.tanh((W + 0.5 * B @ A) @ row + bias) + c
        log = logits - torch.logsumexp(logits, 0)
        g_A, g_B = torch.autograd.grad(-log[logits.argmax()], (A, B))
        of_A, of_B = of_A + g_A**2, of_B + g_B**2
    assert torch.allclose(found.A["layer"].double(), of_A.detach(), atol=1e-6)
    assert torch.allclose(found.B["layer"].double(), of_B.detach(), atol=1e-6)


def test_importances_are_a_running_mean_over_plateaus() -> None:
    parts = [Importance({"m": torch.full((1, 2), v)}, {"m": torch.full((2, 1), 2 * v)}) for v in (3.0, 5.0, 10.0)]
    mean = parts[0]
    for number, part in enumerate(parts[1:], start=2):
        mean = averaged(mean, part, number)
    assert mean.A["m"].tolist() == [[pytest.approx(6.0)] * 2]
    assert mean.B["m"].tolist() == [[pytest.approx(12.0)]] * 2
