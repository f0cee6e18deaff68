r"""NOLA (ICLR 2024, arXiv 2310.02556): A and B are linear combinations of random matrices, whose weights are trained.

    A = A_0 + sum_k a_k A_k,    B = B_0 + sum_k b_k B_k,    A_k, B_k ~ U(-1, 1) / sqrt(K),    a = b = 0 at the start

A_0 and B_0 are the start's (LoRA's: A_0 random, B_0 = 0), as in the released code, so that b has a gradient from the
first step on. A site trains 2 K numbers, whatever its size and rank. Two things are ours. The random matrices of one
shape are shared by all sites of that shape, so that they are drawn and held once, and one product combines them for
all sites. They are held in memory, ``K r (d_in + d_out)`` numbers a shape, where the released code draws them again in
each forward pass and sets torch's global generator for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class Nola(Variant):
    """A and B are sums of fixed random matrices, whose weights are trained."""

    paper: ClassVar[str | None] = "NOLA, arXiv 2310.02556"
    learning_rate: ClassVar[float | None] = 5e-3

    bases: int = setting(512, "Number K of random matrices for each factor.", ge=1, le=65536)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """All weights 0."""
        return _Combined(start.begin(context), self.bases)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """The weights of both sums."""
        return 2 * self.bases


class _Combined(Parametrization):
    def __init__(self, start: LoraFactors, bases: int) -> None:
        super().__init__()
        self._scaling = start.scaling
        self.of_A, self.of_B = _Sums(start.A, bases), _Sums(start.B, bases)

    def factors(self) -> LoraFactors:
        """Both sums."""
        return LoraFactors(self.of_A(), self.of_B(), self._scaling)


class _Sums(nn.Module):
    """Weighted sums of random matrices beside one fixed matrix for each site.

    Args:
        begun: The fixed matrices by site.
        bases: K.
    """

    def __init__(self, begun: Mapping[str, Tensor], bases: int) -> None:
        super().__init__()
        self._sites = tuple(begun)
        self._groups: dict[torch.Size, list[str]] = {}
        for site, tensor in begun.items():
            self._groups.setdefault(tensor.shape, []).append(site)
        # no buffers: a resumed training draws the same again
        self._begun = {shape: torch.stack([begun[site] for site in sites]) for shape, sites in self._groups.items()}
        self._random = [_drawn(bases, fixed[0]) for fixed in self._begun.values()]
        self.weights = nn.ParameterList(fixed.new_zeros(len(fixed), bases) for fixed in self._begun.values())

    def forward(self) -> dict[str, Tensor]:
        """The sum of each site."""
        found: dict[str, Tensor] = {}
        for sites, fixed, weights, random in zip(
            self._groups.values(), self._begun.values(), self.weights, self._random, strict=True
        ):
            sums = fixed + (weights @ random).view_as(fixed)
            found.update(zip(sites, sums, strict=True))
        return {site: found[site] for site in self._sites}


def _drawn(bases: int, like: Tensor) -> Tensor:
    """``[K, numbers of a matrix]``."""
    return torch.empty(bases, like.numel(), device=like.device).uniform_(-1, 1).div_(math.sqrt(bases))
