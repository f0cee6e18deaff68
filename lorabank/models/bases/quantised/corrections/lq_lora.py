r"""LQ-LoRA (ICLR 2024, arXiv 2311.12023, algorithm 1): LoftQ until the error of the sum rises; the best pair is kept.

    L = 0;    repeat:    Q = q(W - L),    L = the nearest of rank r to W - Q,    e = ||(W - Q - L) D||_F
    until e is not below the one before; Q and L of the smallest e

D = 1 minimises the error of the weight itself. The paper weighs it by the Fisher information F ``[d_out, d_in]`` of W,
``||sqrt(F) * (W - Q - L)||_F``, and solves this for an F of rank one, from means of its rows and columns:

    D_row (W - Q) D_col = U Sigma V^T,    L = D_row^-1 U_r Sigma_r V_r^T D_col^-1

A correction is made before any task, so there is no loss whose gradients would give F. Of an F that is the product of
what comes out and what goes in, ``F_oi = E[g_o^2] E[x_i^2]``, only the inputs are known: with ``activations`` D_col is
how large the inputs are over the text of `lqer`, and D_row is 1.

The paper also chooses the bits of each matrix by an integer program; here all have those of the quantiser. The factors
belong to the base, as those of `loftq` do, and not to one adapter.
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
class LQLora(Correction):
    """The quantised weight and low-rank factors are found in turn until their error rises; the best pair is kept."""

    paper: ClassVar[str | None] = "LQ-LoRA, arXiv 2311.12023"
    plain: ClassVar[bool] = False

    rank: int = setting(16, "Rank of the correction.", ge=1, le=MAX_RANK)
    iterations: int = setting(20, "How often both are found in turn at most.", ge=1, le=100)
    activations: bool = setting(False, "Weigh the error by how large the inputs are.")

    @property
    def reads_inputs(self) -> bool:
        """With the activations."""
        return self.activations

    def split(self, weight: Tensor, quantiser: Quantiser, inputs: Tensor | None) -> Corrected:
        """Q of what the factors leave, and they, where both together are nearest to the weight."""
        d_out, d_in = weight.shape
        scale = torch.ones(d_in) if inputs is None else inputs
        found, least = Corrected({}, torch.zeros(1, d_in), torch.zeros(d_out, 1)), float("inf")
        best = found
        for _ in range(self.iterations):
            kept, Q = quantised(weight - found.B @ found.A, quantiser)
            found = Corrected(kept, *nearest_of_rank(weight - Q, min(self.rank, d_out, d_in), inputs))
            error = float(((weight - Q - found.B @ found.A) * scale).double().norm())
            if error >= least:
                break
            best, least = found, error
        return best
