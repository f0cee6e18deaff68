"""``dare``: most entries are dropped at random and the others made larger, then summed (DARE, arXiv 2311.03099).

    delta W = sum_k w_k m_k tau_k / (1 - p),    m_k of independent draws, 0 with probability p

On average the sum itself. The paper drops 0.9 and more of the entries of models that were trained whole; LoRA's delta
weights are less redundant, and half of them is the default. The draws follow from the seed and the adapter's content:
the order of the members, other members and a rename change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.algebra.factors import DenseDelta
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.entrywise.entries import dropped, summed, task_vectors
from lorabank.compose.mergers.weighted import Weighed
from lorabank.core.settings import setting


@dataclass(frozen=True)
class DARE(Weighed):
    """The weighted sum of random entries of each task, rescaled to the same mean."""

    paper = "arXiv 2311.03099"

    drop: float = setting(0.5, "Share of each task's entries that is dropped.", ge=0, lt=1)
    seed: int = setting(0, "Seed of the choice of entries to drop.", ge=0, lt=2**32)

    def merge(self, sources: Sources) -> DenseDelta:
        """Delta weights of full rank."""
        pairs = zip(task_vectors(sources), sources.adapters, strict=True)
        vectors = [dropped(vector, self.drop, self.seed, adapter) for vector, adapter in pairs]
        return DenseDelta(summed(sources.modules, vectors, [*self.near(sources.tasks).values()]))
