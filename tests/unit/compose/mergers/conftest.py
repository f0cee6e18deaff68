"""Three tiny adapters of different ranks and scalings, merged, and their delta weights in float64 beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.mergers.base import Sources
from lorabank.core.shelves import MERGERS

SHAPES = {"m": (6, 9), "n": (5, 4)}
WEIGHT = {name: torch.randn(shape, generator=torch.Generator().manual_seed(7)) for name, shape in SHAPES.items()}


class Merging:
    """Adapters by task; a task's adapter is called ``adapter of TASK``."""

    def __init__(self, adapters: Mapping[str, LoraFactors]) -> None:
        self.adapters = dict(adapters)

    def sources(self, *tasks: str) -> Sources:
        """Some of them in an order; all in theirs by default."""
        chosen = tasks or tuple(self.adapters)
        stack = AdapterStack.build({f"adapter of {task}": self.adapters[task] for task in chosen})
        return Sources(chosen, [f"adapter of {task}" for task in chosen], lambda: stack, WEIGHT.__getitem__)

    def dense(self, task: str) -> dict[str, NDArray[np.float64]]:
        """``(diag(g) - 1) W + s B A`` by module."""
        factors, found = self.adapters[task], {}
        for module, a in factors.A.items():
            low = factors.scaling[module] * factors.B[module].double().numpy() @ a.double().numpy()
            gain = factors.gain[module].double().numpy()[:, None] - 1 if module in factors.gain else 0.0
            found[module] = gain * WEIGHT[module].double().numpy() + low
        return found

    def merge(self, name: str, *tasks: str, **settings: object) -> dict[str, NDArray[np.float64]]:
        """What a merger of the shelf makes of them, as delta weights by module."""
        sources = self.sources(*tasks)
        merger = MERGERS.load(name)(**settings).prepared(sources.tasks)
        made = merger.merge(sources)
        if isinstance(made, Mapping):
            made = sources.stack.combine(sources.over(made).float())
        if isinstance(made, DenseDelta):
            return {module: delta.double().numpy() for module, delta in made.delta.items()}
        return {module: made.delta(module, WEIGHT[module]).double().numpy() for module in made.A}


@pytest.fixture
def merging(make_adapter: Callable[..., LoraFactors]) -> Merging:
    ranks = {"a": (2, 1.0), "b": (3, 2.0), "c": (1, 4.0)}
    return Merging(
        {task: make_adapter(SHAPES, r, alpha, seed=i) for i, (task, (r, alpha)) in enumerate(ranks.items())}
    )


@pytest.fixture
def alike(make_adapter: Callable[..., LoraFactors]) -> Merging:
    """The same with one rank."""
    return Merging({task: make_adapter(SHAPES, 2, 1.0 + i, seed=i) for i, task in enumerate("abc")})


@pytest.fixture
def gained(merging: Merging) -> Merging:
    """The second adapter has a row gain on one module."""
    b = merging.adapters["b"]
    gain = {"m": 1 + 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(3))}
    return Merging(merging.adapters | {"b": LoraFactors(b.A, b.B, b.scaling, gain)})
