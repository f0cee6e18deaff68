"""Adafactor (ICML 2018, arXiv 1804.04235, algorithm 4): the squares' mean of a matrix is kept by rows and columns.

    β̂ = 1 − t^(−0.8),   R = β̂ R + (1 − β̂) mean_columns(g² + ε₁),   C = β̂ C + (1 − β̂) mean_rows(g² + ε₁),
    V = R Cᵀ / mean(R),   u = g / √V,   û = u / max(1, RMS(u) / d),   θ = θ − η λ θ − η û

A vector keeps all of v. The rate η is `--learning-rate` and its schedule, as transformers' Trainer has it: the paper's
own, max(ε₂, RMS(θ)) min(10⁻², 1 / √t), stands still while B is 0 and RMS(B) with it. The code is transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lorabank.core.settings import setting
from lorabank.training.optimizers.base import Optimizer


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adam's second moment factored into one number for each row and column, without a first moment."""

    paper: ClassVar[str | None] = "Adafactor, arXiv 1804.04235"

    clip_threshold: float = setting(1.0, "Root mean square at which an update is cut (d).", gt=0)
    decay_rate: float = setting(-0.8, "Exponent of the decay of the second moment.", lt=0)
    beta1: float = setting(0.0, "Decay of a first moment; 0 for none.", ge=0, lt=1)
    eps: float = setting(1e-30, "Added to the squared gradient (ε₁).", gt=0)

    def build(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Transformers', with the learning rate of the training in the place of its own."""
        from transformers.optimization import Adafactor as Factored

        return Factored(
            list(groups),
            lr=learning_rate,
            eps=(self.eps, 1e-3),  # the second is read by the rate of the paper alone
            clip_threshold=self.clip_threshold,
            decay_rate=self.decay_rate,
            beta1=self.beta1 or None,
            scale_parameter=False,
            relative_step=False,
        )
