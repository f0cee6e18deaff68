r"""AdaLoRA (ICLR 2023, arXiv 2303.10512): the ranks of the modules are found while they are trained.

    ΔW = s P diag(λ) Q,    P, Q ~ N(0, 0.02²),    λ = 0 at the start,    s = lora_alpha / r_start

    L = CE + γ mean over P and Q of ‖PᵀP − I‖_F, ‖QQᵀ − I‖_F

The score of a triplet (column of P, λ, row of Q) is that of λ and the means of those of its column and its row, each
the smoothed sensitivity times its uncertainty (`lorabank.training.variants.sensitivity`). All modules begin at the
rank ``r_start``; the budget, the number of triplets that have a ``λ ≠ 0``, falls from ``n r_start`` to ``n r`` along a
cubic curve, and in the last share of the steps the ranks stay as they are.

As the released code, and PEFT, it adds the mean of the norms over the matrices (the paper: the sum of their squares),
and takes the parameters after the optimizer's step with the gradients before it. PEFT divides by ``r_start + 1e-5``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.components import PrunedComponents, PrunedVariant
from lorabank.training.variants.cubic import Window
from lorabank.training.variants.sensitivity import Sensitivity

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart

_DEVIATION = 0.02


@dataclass(frozen=True)
class AdaLora(PrunedVariant):
    """Every module begins at a higher rank, and the least important components of all are pruned."""

    paper: ClassVar[str | None] = "AdaLoRA, arXiv 2303.10512"

    orthogonality: float = setting(0.1, "Weight of the distance of P and Q from orthogonal ones in the loss.", ge=0)
    first: float = setting(0.1, "Share of the steps before anything is pruned.", ge=0, lt=1)
    last: float = setting(0.5, "Share of the steps, at the end, with the final ranks.", ge=0, lt=1)
    every: int = setting(1, "Optimizer steps from one pruning to the next.", ge=1)
    beta1: float = setting(0.85, "Share of the mean sensitivity that is kept in a step.", ge=0, lt=1)
    beta2: float = setting(0.85, "Share of its uncertainty that is kept in a step.", ge=0, lt=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """P and Q drawn from a normal distribution, λ = 0."""
        begun, weights = self.drawn(context, lambda empty: _DEVIATION * empty.normal_())
        return Triplets(begun, weights, context.scaling, self, context.config.r * len(weights))


class Triplets(PrunedComponents):
    """P, λ and Q.

    Args:
        start: Q and P by site.
        weights: λ by site.
        scaling: See `Components`.
        settings: Those of the variant.
        budget: Components that are left of all sites at the end.
    """

    def __init__(
        self, start: LoraFactors, weights: dict[str, Tensor], scaling: float, settings: AdaLora, budget: int
    ) -> None:
        super().__init__(start, weights, scaling)
        self._settings = settings
        self._budget = budget
        self.sensitivity = Sensitivity([*self.A, *self.B, *self.e], settings.beta1, settings.beta2)

    def loss(self, step: Step) -> Tensor | None:
        """γ times the mean distance of ``QQᵀ`` and ``PᵀP`` from the identity."""
        if not self._settings.orthogonality:
            return None
        grams = torch.stack([*(a @ a.mT for a in self.A), *(b.mT @ b for b in self.B)])
        distance = grams - torch.eye(grams.shape[-1], device=grams.device)
        mean: Tensor = torch.linalg.matrix_norm(distance).mean()
        return self._settings.orthogonality * mean

    def before_step(self, step: Step) -> None:
        """Look at the gradients."""
        self.sensitivity.watch()

    def after_step(self, step: Step) -> None:
        """Score the components, and prune those that the budget has no room for."""
        window = Window.of(step.total, self._settings.first, self._settings.last)
        if step.number > window.end:
            self.hold()
            return
        if step.number < window.end:
            self.sensitivity.update()
        due = step.number % self._settings.every == 0 or step.number == window.end
        if step.number > window.begin and due:
            begun = len(self.kept)
            self.prune(self._scores(), int(self._budget + (begun - self._budget) * window.left(step.number)))

    def _scores(self) -> Tensor:
        scores, n = self.sensitivity.scores(), len(self.e)
        rows, columns, values = scores[:n], scores[n : 2 * n], scores[2 * n :]
        triplets = zip(rows, columns, values, strict=True)
        return torch.cat([value + row.mean(1) + column.mean(0) for row, column, value in triplets])
