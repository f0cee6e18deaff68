r"""SparseAdapter (Findings of EMNLP 2022, arXiv 2210.04284) for LoRA: most entries of A and B are pruned early on.

    ΔW = s (M_B ⊙ B) (M_A ⊙ A)

M keeps the entries with the highest scores of all modules together:

    snip         |Σ w dL/dw|, summed over the steps before the pruning (SNIP, arXiv 1810.02340)
    magnitude    |w|
    synflow      |w| times the derivative of 1ᵀ |B| |A| 1 by |w| (SynFlow, arXiv 2006.05467), module by module
    random       a draw

The paper prunes adapters before the first step. In LoRA B is 0 there, so that ``w dL/dw`` is 0 for all of A and B, and
``|w|`` for all of B; so the scores are taken after the first share of the steps. In several rounds the share that is
kept falls as ``(1 − sparsity)^(k / rounds)``. GraSP needs second derivatives of the model and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class SparseAdapter(Variant):
    """A and B are trained, and most of their entries are 0 from early on."""

    paper: ClassVar[str | None] = "SparseAdapter, arXiv 2210.04284"
    own_rows: ClassVar[str | None] = "the strategy makes A anew from other directions, which would not be sparse"

    sparsity: float = setting(0.5, "Share of all entries of A and B that are set to 0.", ge=0, lt=1)
    score: Literal["snip", "magnitude", "synflow", "random"] = setting("snip", "What an entry is kept for.")
    first: float = setting(0.1, "Share of the steps after which the last entries are pruned.", gt=0, lt=1)
    rounds: int = setting(1, "Prunings until then.", ge=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B where the start begins."""
        return Masked(start.begin(context), self, context.config.seed * 1_000_003 + context.number)


class Masked(FreeFactors):
    """A and B with entries that are held at 0.

    Args:
        start: A and B by site.
        settings: Those of the variant.
        seed: For random scores.
    """

    kept: Tensor
    summed: Tensor

    def __init__(self, start: LoraFactors, settings: SparseAdapter, seed: int) -> None:
        super().__init__(start)
        self._settings = settings
        self._seed = seed
        self._entries = (*self.A, *self.B)
        count = sum(part.numel() for part in self._entries)
        device = self._entries[0].device
        self.register_buffer("kept", torch.ones(count, dtype=torch.bool, device=device))
        self.register_buffer("summed", torch.zeros(count, device=device))

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Take ``w dL/dw`` of every entry before the last pruning."""
        if self._settings.score == "snip" and step.number <= self._rounds(step)[-1]:
            found = [torch.zeros_like(w) if w.grad is None else w * w.grad for w in self._entries]
            self.summed += torch.cat([part.flatten() for part in found])

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Prune where it is time, and hold what was pruned at 0."""
        rounds = self._rounds(step)
        if step.number in rounds:
            done = max(k for k, number in enumerate(rounds, 1) if number == step.number)
            share = (1 - self._settings.sparsity) ** (done / len(rounds))
            scores = self._scores().masked_fill(~self.kept, -1.0)
            self.kept[scores.argsort(stable=True)[: len(scores) - round(share * len(scores))]] = False
        if step.number >= rounds[0]:
            for part, kept in zip(self._entries, self._parts(self.kept), strict=True):
                part.masked_fill_(~kept, 0.0)

    def _rounds(self, step: Step) -> list[int]:
        """The steps after which entries are pruned; the last one has learnt two steps at least, so that B is not 0."""
        rounds = self._settings.rounds
        end = max(min(2, step.total), int(self._settings.first * step.total))
        return [max(min(2, end), end * k // rounds) for k in range(1, rounds + 1)]

    def _scores(self) -> Tensor:
        if self._settings.score == "snip":
            return self.summed.abs()
        if self._settings.score == "random":
            generator = torch.Generator().manual_seed(self._seed)
            return torch.rand(len(self.kept), generator=generator).to(self.kept.device)
        sizes = [part.abs() for part in self._entries]
        if self._settings.score == "synflow":
            n = len(self.A)
            pairs = list(zip(sizes[:n], sizes[n:], strict=True))
            sizes = [*(a * b.sum(0)[:, None] for a, b in pairs), *(b * a.sum(1) for a, b in pairs)]
        return torch.cat([size.flatten() for size in sizes])

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Of every factor, in its shape."""
        split = flat.split([part.numel() for part in self._entries])
        return [part.view(w.shape) for part, w in zip(split, self._entries, strict=True)]
