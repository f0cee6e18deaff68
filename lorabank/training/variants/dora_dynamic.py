r"""DoRA, *Dynamic Low-Rank Adaptation* (ACL 2024, arXiv 2405.17357), not the weight-decomposed one (2402.09353).

    ΔW = s Σ_i c_i b_i a_i^T,    c = 0 at the start,    s = lora_alpha / r_start
    score_i ← β score_i + (1 − β) ‖c_i b_i a_i^T‖_F / ‖Σ_j c_j b_j a_j^T‖_F
    L = CE + η mean over all rows of A and columns of B of their variance          (until the pruning ends)

Between a first and a last share of the steps the components with the lowest scores of all modules are pruned: their
number grows along ``((t − t_i) / (T − t_i − t_f))³`` until the mean rank is ``r``. After that their c is held at 0.

The norms are computed from Gram matrices, ``‖b_i a_i^T‖ = ‖b_i‖ ‖a_i‖``, where the released code forms all b_i a_i^T.
It prunes one component at least at every pruning, and ours none where the curve says none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.components import PrunedComponents, PrunedVariant
from lorabank.training.variants.cubic import Window

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart

_EPSILON = 1e-8


@dataclass(frozen=True)
class DynamicDora(PrunedVariant):
    """Every module begins at a higher rank, and the components that change the weight least are pruned."""

    paper: ClassVar[str | None] = "DoRA (dynamic), arXiv 2405.17357"
    own_rows: ClassVar[str | None] = "the strategy makes A anew, and components are scored with the A of the variant"

    variance: float = setting(0.1, "Weight of the variance of A's rows and B's columns in the loss.", ge=0)
    first: float = setting(0.15, "Share of the steps before anything is pruned.", ge=0, lt=1)
    last: float = setting(0.5, "Share of the steps, at the end, with the final ranks.", ge=0, lt=1)
    every: int = setting(100, "Optimizer steps from one pruning to the next.", ge=1)
    beta: float = setting(0.9, "Share of a score that is kept in a step.", ge=0, lt=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B drawn by kaiming_uniform, c = 0."""
        begun, weights = self.drawn(context, nn.init.kaiming_uniform_)
        return Scored(begun, weights, context.scaling, self, context.config.r * len(weights))


class Scored(PrunedComponents):
    """A, B and c.

    Args:
        start: A and B by site.
        weights: c by site.
        scaling: See `Components`.
        settings: Those of the variant.
        budget: Components that are left of all sites at the end.
    """

    scores: Tensor

    def __init__(
        self, start: LoraFactors, weights: dict[str, Tensor], scaling: float, settings: DynamicDora, budget: int
    ) -> None:
        super().__init__(start, weights, scaling)
        self._settings = settings
        self._budget = budget
        self.register_buffer("scores", torch.zeros_like(self.kept, dtype=torch.float32))

    def loss(self, step: Step) -> Tensor | None:
        """η times the mean variance, until the pruning ends."""
        if not self._settings.variance or step.number > self._window(step).end:
            return None
        variances = [*(a.var(1) for a in self.A), *(b.var(0) for b in self.B)]
        return self._settings.variance * torch.cat(variances).mean()

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Score the components, and prune."""
        window = self._window(step)
        if step.number > window.end:
            self.hold()
            return
        self.scores.lerp_(
            torch.cat([_shares(*one) for one in zip(self.A, self.B, self.e, strict=True)]), 1 - self._settings.beta
        )
        if step.number < window.begin:
            return
        if (step.number - window.begin) % self._settings.every == 0 or step.number == window.end:
            done = (step.number - window.begin) / (window.end - window.begin)
            begun = len(self.kept)
            self.prune(self.scores, begun - int((begun - self._budget) * done**3))

    def _window(self, step: Step) -> Window:
        return Window.of(step.total, self._settings.first, self._settings.last)


def _shares(A: Tensor, B: Tensor, c: Tensor) -> Tensor:
    """The norm of each component as a share of that of their sum, ``[r]``."""
    inner = torch.outer(c, c) * (A @ A.mT) * (B.mT @ B)
    return inner.diagonal().clamp_min(0).sqrt() / (inner.sum().clamp_min(0).sqrt() + _EPSILON)
