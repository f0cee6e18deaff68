"""``slao``: a running merge, B averaged over time and A replaced (SLAO, arXiv 2512.23017).

    B_1 = s_1 B^1,   B_i = B_{i-1} + lambda_i (s_i B^i - B_{i-1}),   lambda_i = 1 / sqrt(i)
    A_i = A^i
    delta W = B_T A_T

In the order in which the tasks were learnt, from one merged adapter and the next one alone: what is stored does not
grow with the tasks. The paper also starts each task from the one before (A from an orthonormal basis of its rows, B as
it was), so that their spaces agree; adapters that were trained apart are merged all the same, and the distance from
the exact sum says what the cross terms did. Only here does the order of the members matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.compose.mergers.base import Merger, Sources
from lorabank.compose.mergers.refusals import check_plain, check_ranks


@dataclass(frozen=True)
class SLAO(Merger):
    """A running merge: the newest A, and a mean of all B in which the newest weighs most."""

    paper = "arXiv 2512.23017"

    def near(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """How much of each task's B is left in the running mean."""
        left: dict[str, float] = {}
        for i, task in enumerate(tasks, start=1):
            share = 1 / math.sqrt(i)
            left = {earlier: (1 - share) * weight for earlier, weight in left.items()}
            left[task] = share
        return left

    def merge(self, sources: Sources) -> LoraFactors:
        """One adapter of the members' rank.

        Raises:
            IncompatibleError: They have different ranks on a module.
        """
        adapters = [sources.factors(task) for task in sources.tasks]
        check_plain(sources.tasks, adapters, "slao merges A and B")
        check_ranks(sources.tasks, adapters, "slao merges A and B apart")
        A: dict[str, Tensor] = {}
        B: dict[str, Tensor] = {}
        for i, factors in enumerate(adapters, start=1):
            share = 1 / math.sqrt(i)
            B = {module: (1 - share) * b for module, b in B.items()}
            for module, a in factors.A.items():
                own = share * factors.scaled(module)
                A[module], B[module] = a, B[module] + own if module in B else own
        return LoraFactors(A, B, dict.fromkeys(A, 1.0))
