r"""ReLoRA (ICLR 2024, arXiv 2307.05695): high-rank training through a sequence of low-rank updates.

Training is divided into windows. At the end of each, section 3 of the paper,

    W <- W + s B A,    A <- kaiming,    B <- 0,

nearly all of AdamW's moments of A and B are set to zero, and the learning rate rises again from near zero to what its
schedule says (the "jagged" schedule). The stored adapter is the concatenation of all windows, of rank
``(restarts + 1) r``.

The authors' runs restart every 5,000 of 20,000 steps with 100 steps of warm-up; here the number of windows is set, and
the warm-up is at most a tenth of a window. Their run that warms up with full training has no counterpart: the base is
pre-trained. The authors draw what is pruned for each of the two moments, so that one in a thousand entries keeps its
mean and loses its square. A's gradient is 0 in the first step of a window, so such an entry takes a step of
``mean / eps``; here both moments of an entry go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Step, Variant
from lorabank.training.variants.windows import Restarted, begun, rank_refusal

if TYPE_CHECKING:
    from lorabank.core.config import TrainConfig
    from lorabank.core.errors import ConfigError
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class ReLora(Variant):
    """A and B are merged into the weight and begin anew, several times."""

    paper: ClassVar[str | None] = "ReLoRA, arXiv 2307.05695"
    moves: ClassVar[bool] = True
    moments: ClassVar[bool] = True

    restarts: int = setting(3, "How often A and B begin anew; the adapter's rank is restarts + 1 times --r.", ge=0)
    warmup: int = setting(
        100, "Steps in which the learning rate rises again after a restart, at most a tenth of a window.", ge=0
    )
    pruned: float = setting(0.999, "Part of AdamW's moments of A and B that a restart sets to zero.", ge=0, le=1)
    pruning: Literal["random", "magnitude"] = setting(
        "random", "Which moments: those of drawn entries, or of those whose mean is smallest."
    )

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Free factors that restart."""
        return _Restarted(start.begin(context), self)

    def unfit(self, config: TrainConfig) -> ConfigError | None:
        """The adapter's rank is above the limit."""
        return rank_refusal(self.restarts + 1, config.r, "relora.restarts")

    def rank(self, r: int) -> int:
        """That of all windows together."""
        return (self.restarts + 1) * r


class _Restarted(Restarted):
    def __init__(self, start: LoraFactors, settings: ReLora) -> None:
        super().__init__(start, settings.restarts + 1)
        self._settings = settings

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """A and B apart from a head, whose learning rate does not fall at a restart."""
        return [{"params": [*self.A, *self.B], "lr": learning_rate}]

    def before_step(self, step: Step) -> None:
        """Lower the learning rate in the first steps of a window; its schedule sets it anew after each step."""
        factor = self._rise(step)
        if self._optimizer is None or factor == 1:
            return
        for group in self._optimizer.param_groups:
            if any(one is self.A[0] for one in group["params"]):
                group["lr"] *= factor

    def _rise(self, step: Step) -> float:
        if not self.past.done:
            return 1.0
        warmup = min(self._settings.warmup, step.total // self._windows // 10)
        return min(1.0, (step.number - begun(self.past.done, step.total, self._windows)) / (warmup + 1))

    def renew(self, optimizer: torch.optim.Optimizer) -> None:
        """Set most of the moments to zero; AdamW's count of steps continues, as in the authors' code."""
        generator = torch.Generator().manual_seed(self._seed - self.past.done)
        for parameter in (*self.A, *self.B):
            if state := optimizer.state.get(parameter):
                kept = self._kept(state["exp_avg"], generator)
                state["exp_avg"].mul_(kept)
                state["exp_avg_sq"].mul_(kept)

    def _kept(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """1 for every entry whose moments stay, 0 for the others."""
        share = self._settings.pruned
        if self._settings.pruning == "random":
            return (torch.rand(mean.shape, generator=generator) >= share).to(mean)
        sizes = mean.abs().flatten()
        gone = sizes.argsort(stable=True)[: round(share * len(sizes))]
        return torch.ones_like(sizes).index_fill_(0, gone, 0).view_as(mean)
