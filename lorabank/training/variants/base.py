"""What a variant is: how an adapter's factors come from what is trained, and what happens between steps.

A variant makes a `Parametrization`. The layers of the model hold *leaves*, A, B and, where the variant has one, a row
gain; `lorabank.training.layers.live.Live` sets them to `Parametrization.factors` after each optimizer step, and
carries their gradients back to what is trained before the next. Kernels, dropout, penalties, accumulation and several
processes see only the leaves, whatever the variant. In plain LoRA the leaves *are* what is trained, and nothing is
carried.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors, without_zeros
from lorabank.core.config import TrainConfig
from lorabank.core.shelves import PENALTIES, SAVINGS, STARTS, STRATEGIES

if TYPE_CHECKING:
    from lorabank.core.errors import ConfigError
    from lorabank.models.bases.sites import Site
    from lorabank.models.tuners.state import TunerState
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

    def moved(self) -> Sequence[LoraFactors]:
        """What was added to the weight in memory since the start, in order; none of it is in `factors` any more.

        The layers add it when they get the new factors, and again when a training is resumed: float32, with the
        sites' scaling.
        """
        return ()

    @property
    def drops_inputs(self) -> bool:
        """Whether inputs of A are dropped while training: not where what is trained stands for the weight itself."""
        return True

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """Called once, when the factors are on the model, with the layers by site: a hook may watch what they read."""

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Called when the parameters and buffers are those after some step: find what follows from its number alone.

        That is before the first step, when a checkpoint was read, and when the best step of a training that went on
        behind it was put back.

        Args:
            step: The one after it.
            optimizer: What will take all steps. A schedule sets the learning rates of its groups anew after each.
        """

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups of the optimizer for those parameters that are not trained like all others.

        Args:
            learning_rate: The rate of all other parameters.
        """
        return []

    def loss(self, step: Step) -> Tensor | None:
        """A term of the loss that is added once for each optimizer step; None for none."""
        return None

    def after_loss(self, step: Step) -> None:
        """Called when the layers' factors have the gradients of the task loss, and not yet those of penalties.

        Several processes have the same gradients then, and must be left with the same.
        """

    def before_step(self, step: Step) -> None:
        """Called when the parameters have their gradients, clipped, before the optimizer takes them."""

    def after_step(self, step: Step) -> None:
        """Called after the optimizer's step, before the layers get the new factors."""

    def tuned(self) -> TunerState | None:
        """What is stored in the place of factors, where there are none; None where factors are stored."""
        return None

    @property
    def prunes(self) -> bool:
        """Whether components of rank 1 that are 0 are left out of the fold, and sites that have no others."""
        return False

    @torch.no_grad()
    def fold(self) -> LoraFactors:
        """The adapter over the untouched base, exactly: what was moved, the factors, and the shift negated."""
        folded, shift = self.factors(), self.shift()
        parts = [*self.moved(), folded]
        if shift is not None:
            parts.append(replace(shift, B={site: -b for site, b in shift.B.items()}))
        if len(parts) > 1:
            A = {site: torch.cat([part.A[site].to(a) for part in parts]) for site, a in folded.A.items()}
            B = {site: torch.cat([part.B[site].to(b) for part in parts], dim=1) for site, b in folded.B.items()}
            folded = replace(folded, A=A, B=B)
        return without_zeros(folded) if self.prunes else folded


class Shift(nn.Module):
    """Factors that were taken out of the weight, as buffers: a resumed training takes out the same (`take_shift`).

    Drawing or measuring them anew could give others: on another machine, or of a file that was changed meanwhile.

    Args:
        factors: They are copied.
    """

    def __init__(self, factors: LoraFactors) -> None:
        super().__init__()
        self._scaling = factors.scaling
        for number, site in enumerate(factors.scaling):
            self.register_buffer(f"A{number}", factors.A[site].detach().clone())
            self.register_buffer(f"B{number}", factors.B[site].detach().clone())

    def factors(self) -> LoraFactors:
        """The buffers by site."""
        A, B = ({site: self.get_buffer(f"{x}{k}") for k, site in enumerate(self._scaling)} for x in "AB")
        return LoraFactors(A, B, self._scaling)


class FreeFactors(Parametrization):
    """A and B themselves are trained.

    Args:
        start: Where they begin.
        shifted: Whether that is taken out of the weight in memory.
    """

    def __init__(self, start: LoraFactors, *, shifted: bool = False) -> None:
        super().__init__()
        self.taken = Shift(start) if shifted else None
        self._scaling = start.scaling
        self.A = nn.ParameterList(start.A[site] for site in self._scaling)
        self.B = nn.ParameterList(start.B[site] for site in self._scaling)

    def factors(self) -> LoraFactors:
        """The parameters themselves."""
        A, B = (dict(zip(self._scaling, factors, strict=True)) for factors in (self.A, self.B))
        return LoraFactors(A, B, self._scaling)

    def shift(self) -> LoraFactors | None:
        """The initial factors of a start that is taken out of the weight."""
        return self.taken.factors() if self.taken else None


class PastUse(Protocol):
    """What a variant asks of a strategy; see `lorabank.training.strategies.base.Strategy`."""

    @property
    def earlier(self) -> str:
        """What earlier adapters do."""

    @property
    def answers(self) -> str | None:
        """Who answers for a task that later tasks follow."""

    @property
    def confined(self) -> bool:
        """Whether nothing of the new adapter may lie outside of A."""

    @property
    def penalty(self) -> str | None:
        """Name of the penalty on the new adapter."""


@dataclass(frozen=True)
class Variant(ABC):
    """A variant with its settings, which are the fields of the dataclass.

    Attributes:
        paper: Where it was published.
        gains: Whether it trains a row gain, so that its delta weight has more than the rows of A.
        biases: Whether it trains biases, and no weight (`find_biases`).
        plain: Whether A and B are what is trained, so that a later task can continue them.
        shifted: Whether it takes starts that are taken out of the weight (`FactorStart.shifts`).
        prunes: Whether the ranks that are stored may be lower than `rank`, so that sizes told before are upper bounds.
        draws: Whether it makes all factors itself, so that a start would have no effect.
        shifts: Whether its own product is not 0 at the start and is taken out of the weight, as such a start is.
        learning_rate: The learning rate where the user gives none; None for the one that most variants have.
        moves: Whether it adds to the weight in memory while it is trained (`Parametrization.moved`).
        watches: Whether it measures what its layers read, answer or get as gradients in the passes of a step, so that
            no saving may leave a part of them out (`Saving.partial`).
        own_rows: Why no strategy may choose A in its place (`Strategy.confined`); None where one may.
        moments: Whether it changes the two means of gradients that Adam keeps of every number.
        alone: Whether what it trains has no factors (`Parametrization.tuned`), so that its task answers alone.
        floats: Whether it adapts weights in floats alone, and no quantised base.
    """

    paper: ClassVar[str | None] = None
    gains: ClassVar[bool] = False
    biases: ClassVar[bool] = False
    plain: ClassVar[bool] = False
    shifted: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    shifts: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = None
    moves: ClassVar[bool] = False
    watches: ClassVar[bool] = False
    own_rows: ClassVar[str | None] = None
    moments: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    floats: ClassVar[bool] = False

    @abstractmethod
    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """What is trained, where the start begins. The model's weights are still those of the untouched base."""

    @property
    def same_rows(self) -> bool:
        """Whether A is fixed, with the same rows in every task."""
        return False

    def unfit(self, config: TrainConfig) -> ConfigError | None:
        """Why it cannot be trained with some settings, known before anything is read; None where it can."""
        return None

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """Why a site has the wrong shape for this variant, known before anything is loaded; None where it has not.

        Args:
            site: Of the base; its weight may be on the meta device.
            r: Rank of the new adapter.
            number: How many adapters the bank was given before.
        """
        return None

    def check_sites(self, context: TrainContext) -> None:
        """Raise the `refusal` of the first site that has one."""
        for site in context.sites:
            if refusal := self.refusal(site, context.config.r, context.number):
                raise refusal

    def rank(self, r: int) -> int:
        """The rank of the stored adapter at most, without what a start adds."""
        return r

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """How many numbers are trained of a site."""
        return r * (d_out + d_in)

    def trained(self, sites: Sequence[Site], r: int) -> int:
        """How many numbers are trained of all sites: the sum of `parameters`, unless sites share some."""
        return sum(self.parameters(site.d_out, site.d_in, r) for site in sites)

    def apart(self, rows: int) -> int:
        """How many of the task's own rows, drawn at random, are left out of the epochs, and passed by itself."""
        return 0

    @property
    def usual(self) -> PastUse:
        """The strategy that it is trained with by default, or the first one that it goes with."""
        default: PastUse = STRATEGIES.load(TrainConfig.strategy)
        others = (one for _, one in STRATEGIES.items())
        return next((one for one in (default, *others) if not self.refuses(one, _default_start())), default)

    @property
    def refused(self) -> tuple[str, ...]:
        """The savings, the strategies, with the default start, and the starts, with its usual strategy, it refuses."""
        start, usual = _default_start(), self.usual
        found = {f"strategy {name}": self.refuses(one, start) for name, one in STRATEGIES.items()}
        found |= {f"start {name}": self.refuses(usual, one()) for name, one in STARTS.items()}
        found |= {f"saving {name}": self.refuses_saving(partial=one.partial) for name, one in SAVINGS.items()}
        return tuple(f"{what}: {reason}" for what, reason in found.items() if reason)

    def refuses_saving(self, *, partial: bool) -> str | None:
        """Why it cannot be trained with a saving, in a sentence without a full stop; None where it can.

        Args:
            partial: Whether some factors may get no gradient in a step.
        """
        if self.watches and partial:
            return "the variant measures its layers in each step, of which the saving leaves some out"
        return None

    def refuses(self, strategy: PastUse, start: FactorStart) -> str | None:
        """Why it cannot be trained with these two, in a sentence without a full stop; None where it can."""
        if strategy.confined and self.own_rows:
            return self.own_rows
        if strategy.earlier == "continued" and not self.plain:
            return "the strategy continues the last adapter, and the bank has only its A and B"
        if strategy.earlier == "continued" and start.shifts:
            return "the strategy continues the last adapter, so the start would have no effect"
        if self.draws and type(start) is not type(_default_start()):
            return "the variant makes all factors itself, so the start would have no effect"
        if self.gains and strategy.earlier == "attended":
            return "the attention weighs only low-rank parts, and the variant trains a row gain"
        shifts, whose = start.shifts or self.shifts, "start" if start.shifts else "variant"
        if shifts and strategy.earlier == "attended":
            return f"the attention would also weigh what the {whose} takes out of the weight, which has to stay whole"
        if self.moves and strategy.earlier == "attended":
            return "the attention would leave out what the variant has added to the weight"
        if self.gains and strategy.confined:
            return "the strategy keeps the new adapter from what earlier tasks read, and a row gain reads all inputs"
        if shifts and strategy.confined:
            return (
                f"the strategy keeps the new adapter from what earlier tasks read, which the {whose}'s part reads too"
            )
        if self.same_rows and (strategy.confined or between_tasks(strategy.penalty)):
            return "the strategy keeps A apart from the rows of earlier tasks, and here every task has the same"
        if start.shifts and not self.shifted:
            return "the variant takes no start that is taken out of the weight"
        return None


def by_shape(sites: Sequence[Site]) -> dict[tuple[int, int], list[str]]:
    """The names of the sites by ``(d_out, d_in)``, in the order in which the shapes come: what can share factors."""
    found: dict[tuple[int, int], list[str]] = {}
    for site in sites:
        found.setdefault((site.d_out, site.d_in), []).append(site.name)
    return found


def _default_start() -> FactorStart:
    start: FactorStart = STARTS.load(TrainConfig.start)()
    return start


def between_tasks(penalty: str | None) -> bool:
    """Whether a penalty compares the rows of A with those of earlier tasks."""
    return penalty in PENALTIES and bool(PENALTIES.load(str(penalty)).between_tasks)
