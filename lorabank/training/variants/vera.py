r"""VeRA (ICLR 2024, arXiv 2310.11454): one pair of random matrices for all modules, of which two vectors are trained.

    dW = diag(b) B diag(d) A,    A, B ~ kaiming uniform, fixed and shared;    b = 0, d = 0.1 at the start

A ``[r, max d_in]`` and B ``[max d_out, r]`` are drawn once and cut to the size of each module, as PEFT does. There is
no scaling: neither the paper nor PEFT has one. What differs is the seed: PEFT wants one key for all adapters of a
model, which puts all tasks into one row space; here every task draws its own pair from the training's seed and its
number. The bank stores ``diag(d) A`` and ``diag(b) B``, so that no key has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class Vera(Variant):
    """One random pair A, B for all modules; each trains a vector between them and one behind them."""

    paper: ClassVar[str | None] = "VeRA, arXiv 2310.11454"
    draws: ClassVar[bool] = True
    learning_rate: ClassVar[float | None] = 1e-2

    d_initial: float = setting(0.1, "Initial value of the vector between A and B.", gt=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """The vectors, and the pair for the largest module."""
        return Vectors(context.sites, context.config.r, self.d_initial)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of both vectors."""
        return r + d_out


class Vectors(Parametrization):
    """Two vectors a site.

    Args:
        sites: What is adapted, on one device.
        r: Rank.
        d_initial: Where d begins.

    Attributes:
        A: The shared ``[r, max d_in]``.
        B: The shared ``[max d_out, r]``.
        d: ``[r]`` of each site.
        b: ``[d_out]`` of each site.
    """

    def __init__(self, sites: Sequence[Site], r: int, d_initial: float) -> None:
        super().__init__()
        device = sites[0].device
        self.A = _drawn(r, max(site.d_in for site in sites), device)
        self.B = _drawn(max(site.d_out for site in sites), r, device)
        self._shapes = {site.name: (site.d_out, site.d_in) for site in sites}
        self.d = nn.ParameterList(torch.full((r,), d_initial, device=device) for _ in sites)
        self.b = nn.ParameterList(torch.zeros(site.d_out, device=device) for site in sites)

    def factors(self) -> LoraFactors:
        """diag(d) A and diag(b) B."""
        A, B = {}, {}
        for (site, (d_out, d_in)), d, b in zip(self._shapes.items(), self.d, self.b, strict=True):
            A[site] = d[:, None] * self.A[:, :d_in]
            B[site] = b[:, None] * self.B[:d_out]
        return LoraFactors(A, B, dict.fromkeys(self._shapes, 1.0))


def _drawn(rows: int, columns: int, device: torch.device) -> Tensor:
    """Uniform within ``sqrt(6 / columns)``: Kaiming's with the gain of a ReLU."""
    bound = math.sqrt(6 / columns)
    return torch.empty(rows, columns, device=device).uniform_(-bound, bound)
