"""Vectors of entries: the delta weights of one task over the whole model, a module at a time.

The papers of this folder speak of task vectors ``tau_k`` of all parameters. Here a vector is a function from a
module's name to its entries, None where the task has none: nothing but one module of one task needs to be in memory,
beside the result. A task's vector covers the modules that its adapter changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.weighted import Weighed
from lorabank.core.settings import setting
from lorabank.core.states import Over

Vector = Callable[[str], Tensor | None]


@dataclass(frozen=True)
class Dropping(Weighed):
    """A merger that begins by dropping random entries of each task."""

    drop: float = setting(0.5, "Share of each task's entries that is dropped.", ge=0, lt=1)
    seed: int = setting(0, "Seed of the choice of entries to drop.", ge=0, lt=2**32)

    def left(self, sources: Sources) -> list[Vector]:
        """What is left of each task's vector, rescaled to the same mean."""
        pairs = zip(task_vectors(sources), sources.adapters, strict=True)
        return [dropped(vector, self.drop, self.seed, adapter) for vector, adapter in pairs]


@dataclass(frozen=True)
class Elected(Weighed):
    """A merger that gives the mean of the entries whose sign was elected."""

    over: ClassVar[Over] = "states"

    scale: float = setting(1.0, "Factor of the result, the paper's lambda.")

    def factors_of(self, tasks: Sequence[str]) -> list[float]:
        """What each task's entries are multiplied by before the mean."""
        return [self.scale * weight for weight in super().near(tasks).values()]

    def near(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """The mean, where nothing is cut and no sign differs."""
        return {task: factor / len(tasks) for task, factor in zip(tasks, self.factors_of(tasks), strict=True)}


def task_vectors(sources: Sources) -> list[Vector]:
    """The delta weights of each task, float32."""
    return [partial(sources.delta, task) for task in sources.tasks]


def trimmed(vector: Vector, modules: Sequence[str], density: float) -> Vector:
    """The share ``density`` of a vector's entries that has the largest magnitudes, the others 0."""
    if density == 1:
        return vector
    parts = [part for module in modules if (part := vector(module)) is not None]
    magnitudes = torch.cat([part.abs().flatten() for part in parts]) if parts else torch.zeros(0)
    if not len(magnitudes):
        return vector
    kept = max(1, int(density * len(magnitudes)))
    least = magnitudes.kthvalue(len(magnitudes) - kept + 1).values
    del parts, magnitudes

    def of(module: str) -> Tensor | None:
        own = vector(module)
        return None if own is None else own * (own.abs() >= least)

    return of


def dropped(vector: Vector, share: float, seed: int, name: str) -> Vector:
    """A vector without a random share of its entries, the others divided by ``1 - share``: the same on average.

    The draw follows from the seed, the name and the module alone: the order of tasks and modules changes nothing.
    """

    def of(module: str) -> Tensor | None:
        own = vector(module)
        if own is None:
            return None
        digest = hashlib.sha256(f"{seed}|{name}|{module}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        drawn = torch.rand(own.shape, generator=generator, dtype=torch.float64).to(own.device)
        return own * (drawn >= share) / (1 - share)

    return of


def summed(modules: Sequence[str], vectors: Sequence[Vector], weights: Sequence[float]) -> dict[str, Tensor]:
    """``sum_k w_k tau_k`` of every module that a vector has."""
    made: dict[str, Tensor] = {}
    for module in modules:
        for vector, weight in zip(vectors, weights, strict=True):
            own = vector(module)
            if own is not None:
                made[module] = made[module] + weight * own if module in made else weight * own
    return made


def agreed(modules: Sequence[str], vectors: Sequence[Vector], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of ``w_k tau_k`` over the tasks whose entry has the sign of ``sum_k tau_k``; 0 where there are none.

    A sum of exactly 0 elects the positive sign, as in PEFT.
    """
    elected = summed(modules, vectors, [1.0] * len(vectors))
    made = {}
    for module, votes in elected.items():
        total, count = torch.zeros_like(votes), torch.zeros_like(votes)
        for vector, weight in zip(vectors, weights, strict=True):
            own = vector(module)
            if own is not None:
                agrees = torch.where(votes >= 0, own > 0, own < 0)
                total += weight * own * agrees
                count += agrees
        made[module] = total / count.clamp(min=1)
    return made
