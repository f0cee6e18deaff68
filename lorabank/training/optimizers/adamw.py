"""AdamW (ICLR 2019, arXiv 1711.05101): Adam whose weight decay does not pass through the moments.

    m = β₁ m + (1 − β₁) g,   v = β₂ v + (1 − β₂) g²,
    θ = θ − η λ θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

It is torch's own, in one kernel for all parameters of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lorabank.core.settings import setting
from lorabank.training.optimizers.base import Optimizer


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    paper: ClassVar[str | None] = "AdamW, arXiv 1711.05101"
    moments: ClassVar[bool] = True

    beta1: float = setting(0.9, "Decay of the mean of the gradients.", ge=0, lt=1)
    beta2: float = setting(0.999, "Decay of the mean of their squares.", ge=0, lt=1)
    eps: float = setting(1e-8, "Added to the root of that mean.", gt=0)

    def build(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Torch's, fused."""
        betas = self.beta1, self.beta2
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=self.eps, fused=True)
