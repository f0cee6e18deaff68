"""Modules that no text goes through (of images, of entities) are told, since their adapters say nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import DivergedError
from lorabank.training.layers.movement import Movement
from tests.unit.training.plain import plain_layers


def test_modules_without_a_gradient_are_told() -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("text", "image", "sound")})
    layers = plain_layers(model, list(model), r=2, lora_alpha=4)
    movement = Movement(layers)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.1)
    for used in ("text", "image"):
        optimizer.zero_grad()
        model[used](torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        if used == "text":
            assert movement.untouched() == (
                "2 of 3 adapted modules learnt nothing, since no text went through them: image and others"
            )
    assert movement.untouched() == ("1 of 3 adapted modules learnt nothing, since no text went through them: sound")
    model["sound"](torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert movement.untouched() is None


@pytest.mark.parametrize(("size", "counts"), [(1.0, True), (1e-30, False), (0.0, False)])
def test_what_was_moved_into_the_weight_counts(size: float, counts: bool) -> None:
    """As where a window has just begun, whose B is 0 again; what is rounded off beside the weight is nothing."""
    model = nn.ModuleDict({"text": nn.Linear(4, 4)})
    layers, past = plain_layers(model, ["text"], r=2, lora_alpha=4), list[LoraFactors]()
    movement = Movement(layers, lambda: past)
    with pytest.raises(DivergedError, match="the training changed nothing: after 6 steps"):
        movement.check(6, 0.01)
    past.append(LoraFactors({"text": torch.ones(2, 4)}, {"text": size * torch.ones(4, 2)}, {"text": 2.0}))
    if counts:
        movement.check(6, 0.01)
        return
    with pytest.raises(DivergedError, match="changed nothing"):
        movement.check(6, 0.01)
