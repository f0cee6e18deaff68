"""A parametrization around another one: strategies change what its factors may be, whatever the variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.training.variants.base import Parametrization, Step


class Wrapper(Parametrization):
    """All that the wrapped one says.

    Args:
        inner: Trains what it trains.
    """

    def __init__(self, inner: Parametrization) -> None:
        super().__init__()
        self.inner = inner

    def factors(self) -> LoraFactors:
        """See `Parametrization.factors`."""
        return self.inner.factors()

    def shift(self) -> LoraFactors | None:
        """See `Parametrization.shift`."""
        return self.inner.shift()

    def moved(self) -> Sequence[LoraFactors]:
        """See `Parametrization.moved`; a wrapper that changes the factors changes these too."""
        return self.inner.moved()

    @property
    def drops_inputs(self) -> bool:
        """See `Parametrization.drops_inputs`."""
        return self.inner.drops_inputs

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """See `Parametrization.begin`."""
        self.inner.begin(layers)

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """See `Parametrization.resume`."""
        self.inner.resume(step, optimizer)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """See `Parametrization.groups`."""
        return self.inner.groups(learning_rate)

    def loss(self, step: Step) -> Tensor | None:
        """See `Parametrization.loss`."""
        return self.inner.loss(step)

    def after_loss(self, step: Step) -> None:
        """See `Parametrization.after_loss`."""
        self.inner.after_loss(step)

    def before_step(self, step: Step) -> None:
        """See `Parametrization.before_step`."""
        self.inner.before_step(step)

    def after_step(self, step: Step) -> None:
        """See `Parametrization.after_step`."""
        self.inner.after_step(step)

    @property
    def prunes(self) -> bool:
        """See `Parametrization.prunes`."""
        return self.inner.prunes
