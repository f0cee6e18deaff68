"""The loss of memory aware synapses (Aljundi et al. 2018, arXiv 1711.09601): ``lambda sum Omega (theta - theta*)^2``.

theta are the entries of lora_A and lora_B of the adapter that continues training, theta* their values after the task
before, and Omega the importances that the strategy of this name records.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorabank.training.penalties.base import FactorGroup, Penalty
from lorabank.training.penalties.ewc import weighed_distance


class MAS(Penalty):
    """``sum Omega (theta - theta*)^2``; the default weight is the paper's lambda."""

    default_weight = 1.0
    paper = "arXiv 1711.09601"

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over both factors of all modules; a group without anchor or importance counts as 0."""
        return weighed_distance(groups)
