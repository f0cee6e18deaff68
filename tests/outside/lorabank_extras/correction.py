"""A correction: what every row lost on average."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lorabank.core.settings import setting
from lorabank.models.bases.quantised.base import Quantiser
from lorabank.models.bases.quantised.corrections.base import Corrected, Correction, quantised


@dataclass(frozen=True)
class Means(Correction):
    """The mean error of each row is added to all of its weights."""

    share: float = setting(1.0, "Part of the mean that is added.", ge=0, le=1)

    def split(self, weight: Tensor, quantiser: Quantiser, inputs: Tensor | None) -> Corrected:
        """Q, and factors of rank 1."""
        kept, Q = quantised(weight, quantiser)
        return Corrected(kept, weight.new_ones(1, weight.shape[1]), self.share * (weight - Q).mean(1, keepdim=True))
