r"""Delta-LoRA (arXiv 2309.02411): the weight itself follows the steps of A and B.

From step K on, with the factors before and after a step t,

    W <- W + lambda s (B_{t+1} A_{t+1} - B_t A_t)

The sum of all these telescopes, so after any step

    W_t + s B_t A_t = W_0 + (1 + lambda) s B_t A_t - lambda s B_K A_K

and the weight need not be touched in every step: ``-lambda s B_K A_K`` is moved into it once, at step K, and from then
on the layers multiply by ``(1 + lambda) B_t``. The gradients of the task's loss are those of Delta-LoRA where the
factor is taken out of A's again, before penalties add theirs:

    dL/dA = s B^T G,    dL/dB = s G A^T,    G the gradient of the weight.

The paper drops no inputs of A, so that the low-rank path and the weight have one gradient; neither is it done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant
from lorabank.training.variants.windows import Moved

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class DeltaLora(Variant):
    """A and B are trained, and the weight follows the steps of their product."""

    paper: ClassVar[str | None] = "Delta-LoRA, arXiv 2309.02411"
    moves: ClassVar[bool] = True

    ratio: float = setting(2.0, "How far the weight moves for each step of the product (lambda).", ge=0)
    after: int = setting(500, "Steps before the weight begins to follow (K), at most a tenth of the training.", ge=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Free factors, whose product counts for more from a step on."""
        return _Followed(start.begin(context), self.ratio, self.after)

    def rank(self, r: int) -> int:
        """The product, and what it was when the weight began to follow."""
        return 2 * r


class _Followed(FreeFactors):
    def __init__(self, start: LoraFactors, ratio: float, after: int) -> None:
        super().__init__(start)
        self._ratio = ratio
        self._after = after
        self._layers: Mapping[str, nn.Module] = {}
        self.past = Moved(start, 1)

    @property
    def drops_inputs(self) -> bool:
        """The low-rank path stands for the weight too."""
        return False

    def factors(self) -> LoraFactors:
        """A and (1 + lambda) B, with the gradient of B; before step K as if lambda were 0."""
        free, ratio = super().factors(), self._now
        return replace(free, B={site: b + ratio * b.detach() for site, b in free.B.items()})

    def moved(self) -> list[LoraFactors]:
        """-lambda s B_K A_K, from step K on."""
        return self.past.factors()

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """Know the layers."""
        self._layers = layers

    def after_loss(self, step: Step) -> None:
        """Take the factor of B out of the gradient of the layers' A."""
        for layer in self._layers.values():
            gradient = layer.get_parameter("lora_A").grad
            if gradient is not None:
                gradient /= 1 + self._now

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Whether step K is over."""
        if step.number == 1 and self._begins(step) == 0:
            self._follow()  # what was moved is in the checkpoint of a later step
        self.past.done = int(step.number > self._begins(step))

    def after_step(self, step: Step) -> None:
        """Let the weight follow after step K."""
        if step.number == self._begins(step):
            self._follow()

    @property
    def _now(self) -> float:
        return self._ratio * self.past.done

    def _follow(self) -> None:
        self.past.keep(super().factors(), -self._ratio)

    def _begins(self, step: Step) -> int:
        return min(self._after, step.total // 10)
