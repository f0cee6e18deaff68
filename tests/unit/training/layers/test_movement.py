"""Modules that no text goes through (of images, of entities) are told, since their adapters say nothing."""

from __future__ import annotations

import torch
from torch import nn

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
