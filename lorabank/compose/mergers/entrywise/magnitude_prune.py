"""``magnitude-prune``: the weighted sum of the largest entries of each task (PEFT's ``magnitude_prune``).

    delta W = sum_k w_k tau_k',    tau_k' = the top share ``density`` of tau_k by magnitude, over the whole model

The first step of `ties` without the election. PEFT cuts the entries of A and of B apart, module by module.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.algebra.factors import DenseDelta
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.entrywise.entries import summed, task_vectors, trimmed
from lorabank.compose.mergers.weighted import Weighed
from lorabank.core.settings import setting


@dataclass(frozen=True)
class MagnitudePrune(Weighed):
    """The weighted sum of the entries of largest magnitude of each task."""

    paper = "PEFT, add_weighted_adapter"

    density: float = setting(0.2, "Share of each task's entries that is kept, those of largest magnitude.", gt=0, le=1)

    def merge(self, sources: Sources) -> DenseDelta:
        """Delta weights of full rank."""
        vectors = [trimmed(vector, sources.modules, self.density) for vector in task_vectors(sources)]
        return DenseDelta(summed(sources.modules, vectors, [*self.near(sources.tasks).values()]))
