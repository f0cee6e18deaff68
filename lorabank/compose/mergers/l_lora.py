"""``l-lora``: the sum of adapters over one shared A (L-LoRA, arXiv 2310.04742).

    delta W = (sum_k w_k s_k B_k) A        rank r, however many members

L-LoRA linearises each LoRA layer at its start, ``y = W x + s (B A_0 + B_0 (A - A_0)) x``. With ``B_0 = 0`` that is
LoRA over the frozen A_0, exactly, and where all members share A_0 the sum of their delta weights keeps their rank. The
result is the same as that of `weighted`, at r instead of T r. Adapters over different A are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.refusals import check_plain, unfit
from lorabank.compose.mergers.weighted import Weighed


@dataclass(frozen=True)
class LLoRA(Weighed):
    """The weighted sum of adapters that share one A, at their own rank."""

    paper = "L-LoRA, arXiv 2310.04742"

    def merge(self, sources: Sources) -> LoraFactors:
        """The shared A with the summed B.

        Raises:
            IncompatibleError: Two members have another A on a module.
        """
        adapters = {task: sources.factors(task) for task in sources.tasks}
        check_plain(sources.tasks, list(adapters.values()), "l-lora sums over one A")
        weights = self.near(sources.tasks)
        A, B = {}, {}
        for module in sources.modules:
            first, *others = [task for task in sources.tasks if module in adapters[task].A]
            A[module] = adapters[first].A[module]
            for task in others:
                if not torch.equal(adapters[task].A[module], A[module]):
                    where = f"tasks {first!r} and {task!r} have different ones on {module}"
                    raise unfit(f"l-lora sums over one A, and {where}")
            own = [weights[task] * adapters[task].scaled(module) for task in (first, *others)]
            B[module] = torch.stack(own).sum(0)
        return LoraFactors(A, B, dict.fromkeys(A, 1.0))
