"""LoRA's start (arXiv 2106.09685), as PEFT draws it: A by ``kaiming_uniform(a=sqrt(5))``, B zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.training.starts.base import FactorStart

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class Kaiming(FactorStart):
    """A is drawn uniformly within 1/sqrt(d_in), B is 0."""

    paper: ClassVar[str | None] = "LoRA, arXiv 2106.09685"

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """The next draw, and zeros."""
        return drawn((site.d_out, site.d_in), context.config.r, site.device)


def drawn(shape: tuple[int, ...], r: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A ``[r, d_in]`` from torch's generator of the device and B ``[d_out, r]`` for a weight of this shape."""
    d_out, d_in = shape
    A = nn.init.kaiming_uniform_(torch.empty(r, d_in, device=device, dtype=torch.float32), a=math.sqrt(5))
    return A, torch.zeros(d_out, r, device=device, dtype=torch.float32)
