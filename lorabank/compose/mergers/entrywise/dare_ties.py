"""``dare-ties``: entries are dropped at random in the place of TIES' trim (DARE, arXiv 2311.03099, with TIES).

    tau_k' = m_k tau_k / (1 - p)                                               as in `dare`
    delta W = scale mean of w_k tau_k' over the k with sign(tau_k') = sign(sum_k tau_k')    as in `ties`

PEFT and mergekit call the same ``dare_ties``; they draw within A and B, or in the order of the models.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.algebra.factors import DenseDelta
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.entrywise.entries import Dropping, Elected, agreed


@dataclass(frozen=True)
class DARETIES(Dropping, Elected):
    """Random entries are dropped, a sign is elected for each entry, and those that have it are averaged."""

    paper = "arXiv 2311.03099 with arXiv 2306.01708"

    def merge(self, sources: Sources) -> DenseDelta:
        """Delta weights of full rank."""
        return DenseDelta(agreed(sources.modules, self.left(sources), self.factors_of(sources.tasks)))
