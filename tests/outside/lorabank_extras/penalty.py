"""A penalty: the new rows are kept out of the space of the earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.training.penalties.base import FactorGroup, Penalty


@dataclass(frozen=True)
class Away(Penalty):
    """``mean_modules |A_new Q^T|^power`` over an orthonormal basis Q of the earlier rows."""

    default_weight = 0.1
    needs_basis = True

    power: float = setting(2.0, "Power of the norm.", ge=1)

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """The mean over all modules; 0 for the first task."""
        inside = [(group.A_new.float() @ group.basis_prev.mT).square().sum((1, 2)) for group in groups]
        tiny = 1e-12  # the gradient of a root has no end at 0
        return (torch.cat(inside) + tiny).pow(self.power / 2).mean() - tiny ** (self.power / 2)
