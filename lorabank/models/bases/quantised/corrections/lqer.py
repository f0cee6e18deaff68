r"""LQER and L2QER (ICML 2024, arXiv 2402.02446, section 3): the quantisation error, cut to a low rank.

With ``E = W - Q`` and a diagonal S of how large the inputs are,

    E S = U Sigma V^T,    B_0 A_0 = U_r Sigma_r V_r^T S^-1

S = I is the paper's LQER. With ``activations``, its L2QER, s_i is the largest mean magnitude of input i over some
texts, at least 1e-4, divided by the root of the product of the smallest and the largest s. Nothing is trained.

It differs in what the texts are: the paper takes 32 samples of a pre-training corpus, we a text that lorabank brings,
so that a bank needs nothing else to make its base again. And the factors stay floats; the paper keeps them in 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lorabank.core.limits import MAX_RANK
from lorabank.core.settings import setting
from lorabank.models.bases.quantised.base import Quantiser
from lorabank.models.bases.quantised.corrections.base import Corrected, Correction, nearest_of_rank, quantised


@dataclass(frozen=True)
class LQER(Correction):
    """The error of the quantised weights, cut to a low rank where the inputs are large, is added beside them."""

    paper: ClassVar[str | None] = "LQER, arXiv 2402.02446"

    rank: int = setting(32, "Rank of the correction.", ge=1, le=MAX_RANK)
    activations: bool = setting(True, "Weigh the error by how large the inputs are (L2QER).")

    @property
    def reads_inputs(self) -> bool:
        """With the activations."""
        return self.activations

    def split(self, weight: Tensor, quantiser: Quantiser, inputs: Tensor | None) -> Corrected:
        """Q of the weight, and its error cut."""
        kept, Q = quantised(weight, quantiser)
        return Corrected(kept, *nearest_of_rank(weight - Q, min(self.rank, *weight.shape), inputs))
