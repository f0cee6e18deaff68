r"""DoRA (ICML 2024, arXiv 2402.09353): direction and magnitude of every row of the weight are trained apart.

    W' = diag(m / ||W + s B A||_row) (W + s B A),    m = ||W||_row at the start

with the norm taken as a constant in the backward pass (section 4.3 of the paper, and PEFT). In the form of every
adapter, with ``g = m / ||W + s B A||_row``, that is the row gain g and the factors A, diag(g) B.

W is the untouched base's weight, so that the delta weight of a task holds nothing of other tasks. Its rows' norms come
from

    ||w + s b A||^2 = ||w||^2 + 2 s b (A w) + s^2 b (A A^T) b^T

for all rows at once, by one thin product with W for each optimizer step. Dropout falls on the low-rank part alone; in
PEFT it falls on ``(g - 1) W x`` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.training.variants.base import FreeFactors, Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class Dora(Variant):
    """A, B and the length of every row of the weight are trained."""

    paper: ClassVar[str | None] = "DoRA, arXiv 2402.09353"
    gains: ClassVar[bool] = True

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A, B and the magnitudes, which begin as the norms of the untouched rows.

        Raises:
            ConfigError: A row of a weight is zero.
        """
        squares = {site.name: site.weight().square().sum(1) for site in context.sites}
        for name, square in squares.items():
            if not bool(square.all()):
                raise ConfigError(
                    f"a row of the weight of {name} is zero, which has no direction for DoRA to train",
                    hint="use --variant lora, or leave it out of --target-modules",
                    unchanged="the adapter was not added to the bank",
                )
        return _Magnitudes(start.begin(context), context.sites, squares)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of LoRA and a magnitude for each row."""
        return super().parameters(d_out, d_in, r) + d_out


class _Magnitudes(FreeFactors):
    def __init__(self, start: LoraFactors, sites: Sequence[Site], squares: dict[str, Tensor]) -> None:
        super().__init__(start)
        self._sites = {site.name: site for site in sites}  # their weights stay as they are beside a gain
        self._squares = squares  # no buffers: they are the base's, and no checkpoint needs them
        self.magnitude = nn.ParameterList(self._squares[site].sqrt() for site in start.scaling)

    def factors(self) -> LoraFactors:
        """A, diag(g) B and g."""
        free = super().factors()
        sites = zip(free.A, self.magnitude, strict=True)
        gain = {site: magnitude / self._norms(free, site) for site, magnitude in sites}
        return replace(free, B={site: gain[site][:, None] * b for site, b in free.B.items()}, gain=gain)

    @torch.no_grad()
    def _norms(self, free: LoraFactors, site: str) -> Tensor:
        A, B = free.A[site], free.scaling[site] * free.B[site]
        crossed = (B * (self._sites[site].weight() @ A.mT)).sum(1)
        return (self._squares[site] + 2 * crossed + ((B @ (A @ A.mT)) * B).sum(1)).clamp_min(0).sqrt()
