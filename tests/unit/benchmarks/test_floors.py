"""The floors of the benchmarks, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.floors import least_forward, least_step
from benchmarks.models import RANK


class Two(nn.Module):
    """An embedding and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.low, self.high = nn.Embedding(10, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.high(self.low(self.embedding(input_ids)).tanh())


ROWS = {"input_ids": torch.arange(10).reshape(2, 5)}


@pytest.mark.parametrize(("modules", "added"), [(["low"], 10), (["low", "high"], 17)])
def test_the_least_arithmetic_of_an_adapted_pass(modules, added) -> None:
    assert least_forward(Two(), modules, ROWS, 3) == pytest.approx(1 + 3 * RANK * added / (6 * 4 + 4 * 3))


@pytest.mark.parametrize(("modules", "reached"), [(["high"], {"high"}), (["low", "high"], {"low", "high"})])
def test_the_least_step_goes_down_to_the_lowest_adapted_module_and_no_further(modules, reached) -> None:
    model, seen = Two(), set()
    step = least_step(model, modules, lambda model, rows: model(**rows).square().sum(), ROWS)

    def watch(name: str, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: seen.add(name))

    for name in ("low", "high"):
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: watch(name, output))
    model.embedding.register_forward_hook(lambda _, __, output: pytest.fail("below") if output.requires_grad else None)
    step()
    assert seen == reached
    assert all(parameter.grad is None for parameter in model.parameters())
