"""``svd``: the exact weighted sum, cut to a rank (Eckart and Young 1936; PEFT's ``combination_type="svd"``).

    delta W = [sum_k w_k delta W_k]_rank      the nearest matrix of that rank in the Frobenius norm

By QR of the concatenated factors, so that only a ``(sum of ranks)^2`` core is decomposed. PEFT's default, the largest
rank of a member, is kept; PEFT forms the ``d_out x d_in`` matrix and decomposes that. A row gain of a member is summed
exactly beside the cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorabank.algebra.compress import compress
from lorabank.algebra.factors import LoraFactors
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.weighted import Weighed
from lorabank.core.settings import setting


@dataclass(frozen=True)
class SVD(Weighed):
    """The weighted sum of the delta weights, cut to a rank by its singular value decomposition."""

    rank: int | None = setting(None, "Rank of the result; default: the largest rank of a member.", ge=1)

    def merge(self, sources: Sources) -> LoraFactors:
        """One adapter of that rank."""
        whole = sources.stack.combine(sources.over(self.near(sources.tasks)))
        return compress(whole, self.rank or sources.rank).factors
