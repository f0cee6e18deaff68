r"""Which form a training step takes without dropout, against both: W and the adapter apart, or one effective weight.

The forms are `lorabank.training.kernels.lora` and `lorabank.training.kernels.effective_weight`, whose first
lines have the mathematics; which one a layer takes follows from its shape and the number of tokens. The bar says how
much slower than the better of the two the choice may be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from benchmarks.harness import Result, compare
from benchmarks.models import batch, every_linear, minilm, new_adapter, smollm2
from lorabank.training.layers.layer import EffectiveWeights

BAR = 1.02
ALL, NONE = float("inf"), 0.0


def measure() -> list[Result]:
    """All linear layers, no dropout; the optimizer's step included."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 49152, (4, 128), generator=generator)
    cases: list[tuple[str, Callable[[], nn.Module], dict[str, Tensor], int]] = [
        ("MiniLM, 256 tokens", minilm, batch(8, 32), 20),
        ("MiniLM, 1,024 tokens", minilm, batch(16, 64), 12),
        ("MiniLM, 4,096 tokens", minilm, batch(32, 128), 16),
        ("SmolLM2's shape, 512 tokens", smollm2, {"input_ids": ids, "labels": ids}, 5),
    ]
    results = []
    for what, make, rows, rounds in cases:
        tokens = rows["input_ids"].numel()
        steps = {"apart": _step(make(), rows, NONE), "effective": _step(make(), rows, ALL)}
        seen = compare(steps | {"chosen": _step(make(), rows, tokens)}, baseline="apart", rounds=rounds)
        chosen, best = seen["chosen"], min(1.0, seen["effective"].ratio)
        results.append(
            Result(
                "effective_weight",
                f"training step without dropout, {what}: the form chosen, against the better of two",
                chosen.ratio / best,
                BAR,
                "x",
                {"chosen, against apart": asdict(chosen), "effective, against apart": asdict(seen["effective"])},
                floor=1.0,
            )
        )
    return results


def _step(model: nn.Module, rows: dict[str, Tensor], tokens: float) -> Callable[[], None]:
    """As a training makes it; ``tokens`` decides the form."""
    model.requires_grad_(False)
    layers = new_adapter(model, every_linear(model), 0.0).layers
    refresh = EffectiveWeights(layers.values(), tokens)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> None:
        model(**rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        refresh()

    return step
