"""``task-arithmetic``: the sum of the delta weights, all times one factor (arXiv 2212.04089, section 3).

    delta W = lambda sum_k delta W_k

The same as `weighted` with equal weights, exact in the same way. A negative lambda unlearns: it takes from the base
what the members have learnt. The paper finds lambda on a validation set; 0.4 is what the TIES paper (arXiv 2306.01708)
takes where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorabank.compose.mergers.base import Merger, Sources
from lorabank.core.settings import setting


@dataclass(frozen=True)
class TaskArithmetic(Merger):
    """The sum of the delta weights, times one factor for all."""

    paper = "arXiv 2212.04089"

    scale: float = setting(0.4, "The factor; below 0 the members are unlearnt.")

    def sum_of(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """The factor, for each task."""
        return dict.fromkeys(tasks, self.scale)

    def merge(self, sources: Sources) -> Mapping[str, float]:
        """The factor, for each task."""
        return self.sum_of(sources.tasks)
