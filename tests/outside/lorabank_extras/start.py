"""A start: A is drawn from a narrow normal distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.training.starts.base import FactorStart

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class Narrow(FactorStart):
    """A is drawn from a narrow normal distribution, B is 0."""

    deviation: float = setting(0.02, "Standard deviation of the entries of A.", gt=0)

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """The next draw, and zeros."""
        A = torch.randn(context.config.r, site.d_in, device=site.device) * self.deviation
        return A, torch.zeros(site.d_out, context.config.r, device=site.device)
