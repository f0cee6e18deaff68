"""Synaptic intelligence's surrogate loss (Zenke et al. 2017, arXiv 1703.04200): ``c sum Omega (theta - theta*)^2``.

theta are the entries of lora_A and lora_B of the adapter that continues training, theta* their values after the task
before, and Omega the importances that the strategy of this name records.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorabank.training.penalties.base import FactorGroup, Penalty
from lorabank.training.penalties.ewc import weighed_distance


class SI(Penalty):
    """``sum Omega (theta - theta*)^2``; the default weight is the paper's c for split CIFAR."""

    default_weight = 0.1
    paper = "arXiv 1703.04200"

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over both factors of all modules; a group without anchor or importance counts as 0."""
        return weighed_distance(groups)
