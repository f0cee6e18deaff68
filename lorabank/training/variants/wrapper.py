"""A parametrization around another one: strategies change what its factors may be, whatever the variant."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.training.variants.base import Parametrization, Step


class Wrapper(Parametrization):
    """All that the wrapped one says; override `factors`.

    Args:
        inner: Trains what it trains.
    """

    def __init__(self, inner: Parametrization) -> None:
        super().__init__()
        self.inner = inner

    def shift(self) -> LoraFactors | None:
        """See `Parametrization.shift`."""
        return self.inner.shift()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """See `Parametrization.groups`."""
        return self.inner.groups(learning_rate)

    def loss(self, step: Step) -> Tensor | None:
        """See `Parametrization.loss`."""
        return self.inner.loss(step)

    def before_step(self, step: Step) -> None:
        """See `Parametrization.before_step`."""
        self.inner.before_step(step)

    def after_step(self, step: Step) -> None:
        """See `Parametrization.after_step`."""
        self.inner.after_step(step)
