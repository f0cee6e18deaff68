"""What a variant is: how an adapter's factors come from what is trained, and what happens between steps.

A variant makes a `Parametrization`. The layers of the model hold *leaves*, A, B and, where the variant has one, a row
gain; `lorabank.training.layers.live.Live` sets them to `Parametrization.factors` after each optimizer step, and
carries their gradients back to what is trained before the next. Kernels, dropout, penalties, accumulation and several
processes see only the leaves, whatever the variant. In plain LoRA the leaves *are* what is trained, and nothing is
carried.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.config import TrainConfig
from lorabank.core.shelves import STARTS, STRATEGIES

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


class Step(NamedTuple):
    """An optimizer step: its number from 1, and how many there will be."""

    number: int
    total: int


class Parametrization(nn.Module, ABC):
    """What is trained of an adapter: the module's parameters.

    Whatever else changes between steps (masks, averages) is a buffer, so that checkpoints hold it.
    """

    @abstractmethod
    def factors(self) -> LoraFactors:
        """A, B and gains by site, part of the graph of the parameters; float32, with the sites' scaling.

        Called once for each optimizer step, outside of autocast.
        """

    def shift(self) -> LoraFactors | None:
        """The constant factors that were taken out of the weight in memory at the start; None where there are none."""
        return None

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups of the optimizer for those parameters that are not trained like all others.

        Args:
            learning_rate: The rate of all other parameters.
        """
        return []

    def loss(self, step: Step) -> Tensor | None:
        """A term of the loss that is added once for each optimizer step; None for none."""
        return None

    def before_step(self, step: Step) -> None:
        """Called when the parameters have their gradients, clipped, before the optimizer takes them."""

    def after_step(self, step: Step) -> None:
        """Called after the optimizer's step, before the layers get the new factors."""

    @torch.no_grad()
    def fold(self) -> LoraFactors:
        """The adapter over the untouched base, exactly: the factors, with the shift appended negated."""
        factors, shift = self.factors(), self.shift()
        if shift is None:
            return factors
        A = {site: torch.cat([a, shift.A[site].to(a)]) for site, a in factors.A.items()}
        B = {site: torch.cat([b, -shift.B[site].to(b)], dim=1) for site, b in factors.B.items()}
        return replace(factors, A=A, B=B)


class FreeFactors(Parametrization):
    """A and B themselves are trained.

    Args:
        start: Where they begin.
        shifted: Whether that is taken out of the weight in memory.
    """

    def __init__(self, start: LoraFactors, *, shifted: bool = False) -> None:
        super().__init__()
        self._start = LoraFactors(_copies(start.A), _copies(start.B), start.scaling) if shifted else None
        self._scaling = start.scaling
        self.A = nn.ParameterList(start.A[site] for site in self._scaling)
        self.B = nn.ParameterList(start.B[site] for site in self._scaling)

    def factors(self) -> LoraFactors:
        """The parameters themselves."""
        A, B = (dict(zip(self._scaling, factors, strict=True)) for factors in (self.A, self.B))
        return LoraFactors(A, B, self._scaling)

    def shift(self) -> LoraFactors | None:
        """The initial factors of a start that is taken out of the weight.

        It is not a buffer: a resumed training takes out of the weight what it draws itself.
        """
        return self._start


class PastUse(Protocol):
    """What a variant asks of a strategy; see `lorabank.training.strategies.base.Strategy`."""

    @property
    def earlier(self) -> str:
        """What earlier adapters do."""

    @property
    def confined(self) -> bool:
        """Whether nothing of the new adapter may lie outside of A."""


@dataclass(frozen=True)
class Variant(ABC):
    """A variant with its settings, which are the fields of the dataclass.

    Attributes:
        paper: Where it was published.
        gains: Whether it trains a row gain, so that its delta weight has more than the rows of A.
        plain: Whether A and B are what is trained, so that a later task can continue them.
        shifted: Whether it takes starts that are taken out of the weight (`FactorStart.shifts`).
    """

    paper: ClassVar[str | None] = None
    gains: ClassVar[bool] = False
    plain: ClassVar[bool] = False
    shifted: ClassVar[bool] = False

    @abstractmethod
    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """What is trained, where the start begins. The model's weights are still those of the untouched base."""

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """How many numbers are trained of a site."""
        return r * (d_out + d_in)

    @property
    def refused(self) -> tuple[str, ...]:
        """The strategies, with the default start, and the starts, with the default strategy, that it refuses."""
        strategy, start = STRATEGIES.load(TrainConfig.strategy), STARTS.load(TrainConfig.start)()
        found = {f"strategy {name}": self.refuses(one, start) for name, one in STRATEGIES.items()}
        found |= {f"start {name}": self.refuses(strategy, one()) for name, one in STARTS.items()}
        return tuple(f"{what}: {reason}" for what, reason in found.items() if reason)

    def refuses(self, strategy: PastUse, start: FactorStart) -> str | None:
        """Why it cannot be trained with these two, in a sentence without a full stop; None where it can."""
        if strategy.earlier == "continued" and not self.plain:
            return "the strategy continues the last adapter, and the bank has only its A and B"
        if strategy.earlier == "continued" and start.shifts:
            return "the strategy continues the last adapter, so the start would have no effect"
        if self.gains and strategy.earlier == "attended":
            return "the attention weighs only low-rank parts, and the variant trains a row gain"
        if start.shifts and strategy.earlier == "attended":
            return "the attention would also weigh what the start takes out of the weight, which has to stay whole"
        if self.gains and strategy.confined:
            return "the strategy keeps the new adapter from what earlier tasks read, and a row gain reads all inputs"
        if start.shifts and strategy.confined:
            return "the strategy keeps the new adapter from what earlier tasks read, which the start's part reads too"
        if start.shifts and not self.shifted:
            return "the variant takes no start that is taken out of the weight"
        return None


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {site: tensor.detach().clone() for site, tensor in tensors.items()}
