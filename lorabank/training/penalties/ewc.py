"""Elastic weight consolidation on the adapter that continues training (Kirkpatrick et al. 2017, arXiv 1612.00796).

    L = task loss + lambda / 2 * sum_i F_i (theta_i - theta*_i)^2

theta are the entries of lora_A and lora_B, theta* their values after the task before, F the diagonal of the empirical
Fisher information (`lorabank.models.facts.fisher`). The penalty belongs to an adapter that is trained through a chain
of tasks. For the chain the online form is used (Schwarz et al. 2018, arXiv 1805.06370): one anchor, the latest theta*,
and importances that add up with a decay, ``F <- gamma F + F_t``.

theta are the factors and not their product: a change of A and B that leaves ``B A`` alone is penalised too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorabank.training.penalties.base import FactorGroup, Penalty


class EWC(Penalty):
    """``1/2 sum F (theta - theta*)^2``.

    The default weight is the lambda of the paper's Atari experiments; F and so the lambda that works change with the
    loss and the model, from 1e2 to 1e7.
    """

    default_weight = 400.0
    paper = "arXiv 1612.00796; online form, arXiv 1805.06370"

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over both factors of all modules; a group without anchor or importance counts as 0."""
        return weighed_distance(groups) / 2


def weighed_distance(groups: Sequence[FactorGroup]) -> Tensor:
    """``sum F (theta - theta*)^2`` over both factors of all modules, for a penalty."""
    terms = [
        (importance.float() * (new.float() - anchor.float()).square()).sum()
        for group in groups
        for new, anchor, importance in (
            (group.A_new, group.A_anchor, group.A_importance),
            (group.B_new, group.B_anchor, group.B_importance),
        )
        if anchor is not None and importance is not None
    ]
    if not terms:
        return torch.stack([group.A_new.float().sum() * 0.0 for group in groups]).sum()
    return torch.stack(terms).sum()
