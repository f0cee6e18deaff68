"""``ties``: trim, elect a sign, take the mean of those that have it (TIES, arXiv 2306.01708).

    tau_k' = the top share ``density`` of tau_k by magnitude, over the whole model       trim
    gamma  = sign(sum_k tau_k')                                                          elect, entry by entry
    delta W = scale mean of w_k tau_k' over the k with sign(tau_k') = gamma              merge

tau_k are delta weights, not A and B: PEFT's ``combination_type="ties"`` trims and elects within A and within B, whose
signs mean nothing apart. The entries where the sum is exactly 0 elect the positive sign, as in PEFT; the official code
gives them the sign that most others have. Weights come after the election, as in PEFT; the paper has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.algebra.factors import DenseDelta
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.entrywise.entries import Elected, agreed, task_vectors, trimmed
from lorabank.core.settings import setting


@dataclass(frozen=True)
class TIES(Elected):
    """Small entries are cut, a sign is elected for each entry, and those that have it are averaged."""

    paper = "arXiv 2306.01708"

    density: float = setting(0.2, "Share of each task's entries that is kept, those of largest magnitude.", gt=0, le=1)

    def merge(self, sources: Sources) -> DenseDelta:
        """Delta weights of full rank."""
        vectors = [trimmed(vector, sources.modules, self.density) for vector in task_vectors(sources)]
        return DenseDelta(agreed(sources.modules, vectors, self.factors_of(sources.tasks)))
