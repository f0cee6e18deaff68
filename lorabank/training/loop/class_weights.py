"""Weights of classes, so that rare labels count as much as frequent ones.

    w_c = n / (C n_c),    L = (1/n) Σ_i w_{y_i} CE_i

with n training rows, n_c of them of class c, and C classes that have rows (scikit-learn's ``balanced``). The weights
have the mean 1 over the training rows, so the loss of a batch is divided by its rows: over an epoch every class
counts the same, and parts of a batch add up to it, in one process or several. The loss of
`torch.nn.CrossEntropyLoss(weight=w)` is divided by the weights of the batch instead, so that a rare label counts the
less the more often it is drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def balanced(targets: Sequence[str], labels: Sequence[str]) -> Tensor:
    """The weight of each label, float32 ``[labels]``; 1 for labels without rows."""
    counts = Counter(targets)
    return torch.tensor([len(targets) / (len(counts) * counts[label]) if counts[label] else 1.0 for label in labels])
