"""PEFT's ``init_lora_weights="gaussian"``: A is drawn from a normal distribution, B is zero.

LoRA (arXiv 2106.09685, section 4.1) says "a random Gaussian initialization for A" and no deviation; that of PEFT is
1/r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.training.starts.base import FactorStart

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class Gaussian(FactorStart):
    """A is drawn from a normal distribution, B is 0."""

    paper: ClassVar[str | None] = "LoRA, arXiv 2106.09685"

    std: float | None = setting(None, "Standard deviation of the entries of A; default: 1 / r, as PEFT's.", gt=0)

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """The next draw, and zeros."""
        r = context.config.r
        A = torch.empty(r, site.d_in, device=site.device, dtype=torch.float32)
        A.normal_(std=1 / r if self.std is None else self.std)
        return A, torch.zeros(site.d_out, r, device=site.device, dtype=torch.float32)
