r"""RoseLoRA (EMNLP 2024, arXiv 2406.10777): rows of A and columns of B are sparse, so that few entries of W change.

    ΔW = s B A,    I ← β I + (1 − β) |w dL/dw|    of every entry w of A and B
    after every step, in each row of A and each column of B, all but the share τ with the highest I are set to 0

τ falls from 1 to ``kept`` along a cubic curve between a first and a last share of the steps. With a share τ left in
each, at least the share ``1 − r τ²`` of ΔW is 0 (the paper's bound).

The importance begins at its first value, as in the code of the authors, who set entries by the threshold at the
``⌊n (1 − τ)⌋``-th lowest and keep that one too; ours is set to 0. Nothing is after the first step, where B was 0 and
no entry has an importance. Their clamping of all entries, which is for
knowledge editing, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant
from lorabank.training.variants.cubic import Window

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class RoseLora(Variant):
    """A and B are trained, and become sparse row by row and column by column."""

    paper: ClassVar[str | None] = "RoseLoRA, arXiv 2406.10777"
    own_rows: ClassVar[str | None] = "the strategy makes A anew from other directions, which would not be sparse"

    kept: float = setting(0.05, "Share of every row of A and column of B that is left at the end.", gt=0, le=1)
    first: float = setting(0.05, "Share of the steps before anything is set to 0.", ge=0, lt=1)
    last: float = setting(0.7, "Share of the steps, at the end, with the final share.", ge=0, lt=1)
    beta: float = setting(0.8, "Share of the importance that is kept in a step.", ge=0, lt=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B where the start begins."""
        return SparseRows(start.begin(context), self)


class SparseRows(FreeFactors):
    """Sparse A and B.

    Args:
        start: A and B by site.
        settings: Those of the variant.
    """

    begun: Tensor

    def __init__(self, start: LoraFactors, settings: RoseLora) -> None:
        super().__init__(start)
        self._settings = settings
        self.register_buffer("begun", torch.tensor(False))
        for k, (parameter, _) in enumerate(self._entries()):
            self.register_buffer(f"importance_{k}", torch.zeros_like(parameter, requires_grad=False))

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Take the importance of every entry."""
        rate = 1 - self._settings.beta if bool(self.begun) else 1.0
        self.begun.fill_(True)
        for k, (parameter, _) in enumerate(self._entries()):
            if parameter.grad is not None:
                self.get_buffer(f"importance_{k}").lerp_((parameter * parameter.grad).abs(), rate)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Set the least important entries to 0."""
        settings = self._settings
        left = Window.of(step.total, settings.first, settings.last).left(step.number)
        share = settings.kept + (1 - settings.kept) * left
        if share == 1 or step.number < min(2, step.total):
            return
        for k, (parameter, dim) in enumerate(self._entries()):
            n = parameter.shape[dim]
            count = max(1, n - int(n * (1 - share)))
            highest = self.get_buffer(f"importance_{k}").topk(count, dim, sorted=False).indices
            parameter.mul_(torch.zeros_like(parameter).scatter_(dim, highest, 1.0))

    def _entries(self) -> list[tuple[nn.Parameter, int]]:
        """Every factor with the dimension along which it is sparse."""
        return [*((a, 1) for a in self.A), *((b, 0) for b in self.B)]
