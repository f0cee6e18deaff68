"""Memory aware synapses (Aljundi et al. 2018, arXiv 1711.09601): what moves the answers is held.

A single adapter is trained on every task in turn. With f(x) the logits of a row (of a language model those of all
tokens of its answer), the importance of an entry is the mean size of the slope of their squared norm,

    Omega_i = 1/N sum_n | d |f(x_n)|^2 / d theta_i |

added up over the tasks; no label is looked at. `lorabank.training.penalties.mas` holds the entries by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lorabank.models.facts.fisher import Importance, diagonal_fisher, summed
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.strategies.ewc import Consolidated


@dataclass(frozen=True)
class _MAS(Consolidated):
    def importance(self, context: TrainContext, attached: Attached) -> Importance:
        """The mean size of each entry's slope."""

        def each(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
            return logits.square().sum(-1)

        loss = summed(partial(context.mean, each))
        return diagonal_fisher(context.model, attached.layers, context.batches(), loss, torch.abs)


MAS = _MAS(
    "mas",
    "continued",
    "mas",
    needs=("output-importance",),
    about="A single adapter is trained on every task in turn, the entries that move its answers held where they were.",
    paper="MAS, arXiv 1711.09601",
)
