r"""LoftQ (ICLR 2024, arXiv 2310.08659, algorithm 1): quantised weight and low-rank factors found in turn.

    (A_0, B_0) = 0;    T times:    Q = q(W - B_0 A_0),    B_0 A_0 = the nearest of rank r to W - Q

It differs in whose the factors are. In the paper they are where one adapter begins; here they belong to the base, and
a task begins with B = 0 beside them: the same function, and tasks that can be summed. The scaling lora_alpha / r has
no part in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.core.limits import MAX_RANK
from lorabank.core.settings import setting
from lorabank.models.bases.quantised.base import Quantiser
from lorabank.models.bases.quantised.corrections.base import Corrected, Correction, nearest_of_rank, quantised


@dataclass(frozen=True)
class LoftQ(Correction):
    """The quantised weight and low-rank factors beside it are found in turn, so that their sum is near the weight."""

    paper: ClassVar[str | None] = "LoftQ, arXiv 2310.08659"
    plain: ClassVar[bool] = False

    rank: int = setting(16, "Rank of the correction.", ge=1, le=MAX_RANK)
    iterations: int = setting(5, "How often both are found in turn.", ge=1, le=100)

    def split(self, weight: Tensor, quantiser: Quantiser, inputs: Tensor | None) -> Corrected:
        """Q of what the factors leave, and they."""
        d_out, d_in = weight.shape
        found = Corrected({}, torch.zeros(1, d_in), torch.zeros(d_out, 1))
        for _ in range(self.iterations):
            kept, Q = quantised(weight - found.B @ found.A, quantiser)
            found = Corrected(kept, *nearest_of_rank(weight - Q, min(self.rank, d_out, d_in)))
        return found
