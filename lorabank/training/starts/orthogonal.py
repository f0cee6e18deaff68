r"""A with random orthonormal rows, B zero: the A of "Asymmetry in Low-Rank Adapters" (ICML 2024, arXiv 2402.16842).

    A A^T = I,    B = 0

The r rows are uniform among all orthonormal ones: Q of the QR decomposition of a Gaussian ``[d_in, r]``, its signs set
by R's diagonal. No direction of the input is weighed twice, so that a task of rank r begins with r directions that are
equally long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lorabank.core.errors import ConfigError
from lorabank.training.starts.base import FactorStart

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class Orthogonal(FactorStart):
    """A begins with random orthonormal rows, B is 0."""

    paper: ClassVar[str | None] = "Asymmetry in Low-Rank Adapters, arXiv 2402.16842"

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """More rows than inputs cannot be orthonormal."""
        if r <= site.d_in:
            return None
        return ConfigError(
            f"{site.name} has {site.d_in} inputs, among which {r} rows cannot be orthonormal",
            hint="lower --r",
            unchanged="nothing was changed",
        )

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """The next draw, and zeros."""
        r = context.config.r
        Q, R = torch.linalg.qr(torch.randn(site.d_in, r, device=site.device, dtype=torch.float32))
        return (Q * R.diagonal().sign()).mT.contiguous(), torch.zeros(site.d_out, r, device=site.device)
