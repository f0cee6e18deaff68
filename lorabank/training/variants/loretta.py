r"""LoRETTA (NAACL 2024, arXiv 2402.11417), the form that reparametrizes LoRA: A and B are tensor trains.

With ``d_in = n_1 ... n_m`` the tensor ``[r, n_1, ..., n_m]`` of A is a product of cores ``G_k [t, n_k, t]``, with t =
1 at both ends,

    A[i, j_1 ... j_m] = G_0[i] G_1[j_1] ... G_m[j_m]

and B^T ``[r, d_out]`` is another; ``dW = s B A``. With k cores a core begins normal with the standard deviation ``(d +
r)^(-1 / 2k) / sqrt(t)``, so that an entry of the product has the variance ``1 / (d + r)``. The last core of B begins
at 0: the released code draws it too, and begins away from the base. The code has tables of mode sizes for some hidden
sizes and ranks, which may cut r across modes; here r is a mode, and a size is made of ``modes`` factors that are as
equal as its prime numbers allow. The rank of dW is at most the smaller of r and t.

The other form, LoRETTA_adp, is a layer with a non-linearity behind the module. It has no delta weight, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
class Loretta(Variant):
    """A and B are tensor trains, whose small cores are trained."""

    paper: ClassVar[str | None] = "LoRETTA (rep), arXiv 2402.11417"
    draws: ClassVar[bool] = True

    tensor_rank: int = setting(5, "Rank t of the tensor trains.", ge=1, le=512)
    modes: int = setting(3, "Number of factors into which each size of a module is split.", ge=1, le=8)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """The cores, the last one of B at 0."""
        return _Trains(context.sites, context.config.r, context.scaling, self)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of both trains."""
        return sum(math.prod(shape) for d in (d_out, d_in) for shape in self.shapes(r, d))

    def shapes(self, r: int, d: int) -> list[tuple[int, int, int]]:
        """Of the cores of an ``[r, d]`` matrix."""
        sizes = [r, *mode_sizes(d, self.modes)]
        t = [1, *[self.tensor_rank] * (len(sizes) - 1), 1]
        return list(zip(t, sizes, t[1:], strict=False))


class _Trains(Parametrization):
    def __init__(self, sites: Sequence[Site], r: int, scaling: float, settings: Loretta) -> None:
        super().__init__()
        self._r, self._scaling = r, {site.name: scaling for site in sites}
        self.A, self.B = nn.ModuleList(), nn.ModuleList()
        for site in sites:
            self.A.append(_cores(settings.shapes(r, site.d_in), site.d_in + r, site.device))
            of_B = _cores(settings.shapes(r, site.d_out), site.d_out + r, site.device)
            nn.init.zeros_(of_B[-1])
            self.B.append(of_B)

    def factors(self) -> LoraFactors:
        """Both products, as matrices."""
        A, B = {}, {}
        for site, rows, columns in zip(self._scaling, self.A, self.B, strict=True):
            A[site] = self._matrix(rows)
            B[site] = self._matrix(columns).mT
        return LoraFactors(A, B, self._scaling)

    def _matrix(self, cores: nn.Module) -> Tensor:
        """``[r, d]``: the train contracted from its end, where the products are smallest."""
        first, *others = cores.parameters()
        behind = torch.ones(1, 1, device=first.device)
        for core in reversed(others):  # [t, n, t'] times [t', everything behind]
            behind = (core @ behind).flatten(1)
        return first.squeeze(0) @ behind


def _cores(shapes: Sequence[tuple[int, int, int]], sizes: int, device: torch.device) -> nn.ParameterList:
    """Drawn so that an entry of the product has the variance ``1 / sizes``."""
    each = sizes ** (-0.5 / len(shapes))
    return nn.ParameterList(torch.randn(shape, device=device) * (each / math.sqrt(shape[2])) for shape in shapes)


def mode_sizes(d: int, modes: int) -> list[int]:
    """``d`` as a product of so many numbers, the primes of d dealt out from the largest one to the smallest number."""
    sizes = [1] * modes
    for prime in sorted(_primes(d), reverse=True):
        sizes.sort(reverse=True)
        sizes[-1] *= prime
    return sorted(sizes)


def _primes(d: int) -> Iterator[int]:
    prime = 2
    while d > 1:
        while d % prime == 0:
            yield prime
            d //= prime
        prime = prime + 1 if prime * prime <= d else max(d, 2)
