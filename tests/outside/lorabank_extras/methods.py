"""Methods that lorabank does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.compose.mergers.base import Merger, Sources
from lorabank.compose.routed import Routed
from lorabank.core.settings import setting
from lorabank.training.penalties.base import FactorGroup, Penalty
from lorabank.training.strategies.base import Strategy

APART = Strategy("apart", "off")


class Away(Penalty):
    """``mean_modules |A_new Q^T|_F^2`` over the basis Q of the earlier rows."""

    default_weight = 0.1
    needs_basis = True

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """The mean over all modules; 0 for the first task."""
        shares = [(group.A_new.float() @ group.basis_prev.mT).square().sum((1, 2)) for group in groups]
        return torch.cat(shares).mean()


class Soft(Routed):
    """A routed composition under a name of its own."""


@dataclass(frozen=True)
class Shares(Merger):
    """Every adapter with one weight."""

    share: float = setting(1.0, "The weight.", gt=0)

    def merge(self, sources: Sources) -> Mapping[str, float]:
        """The weight of each task."""
        return dict.fromkeys(sources.tasks, self.share)
