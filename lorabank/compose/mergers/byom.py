"""``byom``: every adapter cut to a rank of its own before they are summed (BYOM-LoRA, arXiv 2310.01886).

    delta W = sum_k w_k [delta W_k]_q      [.]_q keeps the q largest singular values

The paper merges nothing: it stores each task's cut and picks one by the task. Here the cuts are summed, so that one
state answers; a weight of 1 for one task and 0 for the others gives the paper's state of that task. Without data, by
QR of B and A^T with an ``r x r`` core. The paper's text gives no q: half of each adapter's rank is the default. A row
gain belongs to no singular value: the whole delta weight over the base's weight is cut then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorabank.algebra.compress import compress, compress_dense
from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.weighted import Weighed
from lorabank.core.settings import setting


@dataclass(frozen=True)
class BYOM(Weighed):
    """The weighted sum of the adapters, each cut to a rank of its own."""

    paper = "BYOM-LoRA, arXiv 2310.01886"

    rank: int | None = setting(None, "Singular values kept of each adapter; default: half its rank.", ge=1)

    def merge(self, sources: Sources) -> LoraFactors:
        """The cut adapters, concatenated."""
        cut = {task: self._cut(sources, task) for task in sources.tasks}
        weights = self.near(sources.tasks)
        stack = AdapterStack.build(cut, dtype=torch.float64)
        return stack.combine(torch.tensor([weights[task] for task in cut], dtype=torch.float64))

    def _cut(self, sources: Sources, task: str) -> LoraFactors:
        factors = sources.factors(task)
        rank = self.rank or -(-max(len(a) for a in factors.A.values()) // 2)
        plain = [module for module in factors.A if module not in factors.gain]
        low = LoraFactors({m: factors.A[m] for m in plain}, {m: factors.B[m] for m in plain}, factors.scaling)
        gained = {module: factors.delta(module, sources.weight(module)) for module in factors.gain}
        parts = compress(low, rank).factors, compress_dense(DenseDelta(gained), rank).factors
        A, B = ({**parts[0].A, **parts[1].A}, {**parts[0].B, **parts[1].B})
        return LoraFactors(A, B, dict.fromkeys(A, 1.0))
