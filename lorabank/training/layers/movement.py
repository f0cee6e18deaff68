"""Whether a training changed anything: an adapter that says nothing has learnt no task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import DivergedError
from lorabank.models.bases.sites import matrix_of
from lorabank.training.layers.layer import LoraLinear


class Movement:
    """Remembers where the factors of an adapter begin.

    Args:
        layers: Its layers by module name, before the first step (and before a checkpoint is read).
        moved: Gives what was added to the weights in memory since then (`Parametrization.moved`).
    """

    def __init__(self, layers: Mapping[str, LoraLinear], moved: Callable[[], Sequence[LoraFactors]] = tuple) -> None:
        self._layers = layers
        self._added = moved
        self._start = {name: [leaf.detach().clone() for leaf in layer.leaves()] for name, layer in layers.items()}

    def check(self, steps: int, learning_rate: float) -> None:
        """Refuse an adapter with which every weight is what it was, to the bit.

        A new adapter begins at the untouched weights (B = 0), one that is trained further at those of the last task.

        Raises:
            DivergedError: Naming steps and learning rate.
        """
        if any(self._moved(name, layer) for name, layer in self._layers.items()):
            return
        raise unmoved(steps, learning_rate)

    def untouched(self) -> str | None:
        """One line about the modules whose factors are what they were, which no text went through; None for none."""
        names = [name for name, layer in self._layers.items() if self._same(name, layer)]
        if not names:
            return None
        return (
            f"{len(names)} of {len(self._layers)} adapted modules learnt nothing, since no text went through them: "
            f"{names[0]}{' and others' * (len(names) > 1)}"
        )

    def _same(self, name: str, layer: LoraLinear) -> bool:
        return all(torch.equal(*pair) for pair in zip(self._start[name], layer.leaves(), strict=True))

    @torch.no_grad()
    def _moved(self, name: str, layer: LoraLinear) -> bool:
        weight = matrix_of(layer.base).float()

        def adapted(A: Tensor, B: Tensor, gain: Tensor | None = None) -> Tensor:
            return (weight if gain is None else gain[:, None] * weight) + layer.scaling * (B @ A)

        pairs = [(adapted(*self._start[name]), adapted(*layer.leaves()))]
        pairs += [(weight, weight + one.scaled(name) @ one.A[name]) for one in self._added()]
        return not all(torch.equal(*pair) for pair in pairs)


def unmoved(steps: int, learning_rate: float) -> DivergedError:
    """The error for a training that changed nothing."""
    return DivergedError(
        f"the training changed nothing: after {steps} steps with the learning rate {learning_rate:g} every "
        "adapted weight is unchanged",
        unchanged="the adapter was not added to the bank",
        hint="raise --learning-rate, or --epochs",
    )
