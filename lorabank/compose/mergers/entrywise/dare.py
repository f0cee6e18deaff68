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
from lorabank.compose.mergers.entrywise.entries import Dropping, summed


@dataclass(frozen=True)
class DARE(Dropping):
    """The weighted sum of random entries of each task, rescaled to the same mean."""

    paper = "arXiv 2311.03099"

    def merge(self, sources: Sources) -> DenseDelta:
        """Delta weights of full rank."""
        return DenseDelta(summed(sources.modules, self.left(sources), [*self.near(sources.tasks).values()]))
