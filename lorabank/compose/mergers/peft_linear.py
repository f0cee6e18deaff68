"""``peft-linear``: A and B summed apart, as PEFT's ``combination_type="linear"`` does; to reproduce its results.

    A = sum_k sign(w_k s_k) sqrt|w_k s_k| A_k,    B = sum_k sqrt|w_k s_k| B_k,    delta W = B A

``B A`` has the cross terms ``B_i A_j`` of different adapters, which no member was trained with: the distance from the
exact sum, which is shown and stored, is often near 1. `weighted` gives the exact sum. The formula is that of PEFT
0.21; older versions refuse negative weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.refusals import check_plain, check_ranks
from lorabank.compose.mergers.weighted import Weighed


@dataclass(frozen=True)
class PEFTLinear(Weighed):
    """The weighted sums of all A and of all B apart, which has cross terms."""

    paper = "PEFT, add_weighted_adapter"

    def merge(self, sources: Sources) -> LoraFactors:
        """One adapter of the members' rank.

        Raises:
            IncompatibleError: They have different ranks on a module.
        """
        adapters = [sources.factors(task) for task in sources.tasks]
        check_plain(sources.tasks, adapters, "peft-linear sums A and B")
        check_ranks(sources.tasks, adapters, "peft-linear sums A and B apart")
        weights = self.near(sources.tasks)
        A: dict[str, Tensor] = {}
        B: dict[str, Tensor] = {}
        for task, factors in zip(sources.tasks, adapters, strict=True):
            for module, a in factors.A.items():
                root = math.sqrt(abs(weights[task] * factors.scaling[module]))
                own_A = math.copysign(root, weights[task] * factors.scaling[module]) * a
                own_B = root * factors.B[module]
                A[module] = A[module] + own_A if module in A else own_A
                B[module] = B[module] + own_B if module in B else own_B
        return LoraFactors(A, B, dict.fromkeys(A, 1.0))
