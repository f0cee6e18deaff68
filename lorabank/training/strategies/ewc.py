"""EWC on one adapter that continues training (Kirkpatrick et al. 2017, arXiv 1612.00796; online: 1805.06370).

The adapter starts from the last one and is held where it was, entry by entry, by the importances of all tasks before
(`lorabank.training.penalties.ewc`). When the task is learnt, its own importances are added to them and recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lorabank.models.facts.fisher import (
    Anchor,
    Importance,
    accumulated,
    diagonal_fisher,
    fisher_from_bytes,
    fisher_to_bytes,
    summed,
)
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization


@dataclass(frozen=True)
class Consolidated(Strategy, ABC):
    """A single adapter that is held where the last task left it, by importances that each task records and adds to.

    They are recorded under the first role of ``needs``.
    """

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The last adapter continues training; its factors and importances are the anchor."""
        attached = super().attach(context, parametrization)
        if context.initial is None:
            return attached
        before = fisher_from_bytes(context.objects[self.needs[0]][-1].data)
        return replace(attached, anchor=Anchor(context.initial, before))

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """The importances of this task, added to the earlier ones."""
        own = self.importance(context, attached)
        before = _rescaled(attached.anchor, attached.layers) if attached.anchor else None
        return {self.needs[0]: fisher_to_bytes(accumulated(before, own))}

    @abstractmethod
    def importance(self, context: TrainContext, attached: Attached) -> Importance:
        """How much each entry matters to the task that was just learnt."""


@dataclass(frozen=True)
class _EWC(Consolidated):
    def importance(self, context: TrainContext, attached: Attached) -> Importance:
        """The diagonal of the empirical Fisher information."""
        loss = summed(context.negative_log_likelihood)
        return diagonal_fisher(context.model, attached.layers, context.batches(), loss)


def _rescaled(anchor: Anchor, layers: Mapping[str, LoraLinear]) -> Importance:
    """The earlier importances in the scaling of the layers: ``B = c B*`` makes ``F = F* / c^2``."""
    before = anchor.importance
    c = {name: anchor.factors.scaling[name] / layer.scaling for name, layer in layers.items()}
    return Importance(before.A, {name: value / c.get(name, 1.0) ** 2 for name, value in before.B.items()})


EWC = _EWC(
    "ewc",
    "continued",
    "ewc",
    needs=("importance",),
    about="A single adapter is trained on every task in turn, its important entries held where they were.",
    paper="arXiv 1612.00796; online form, arXiv 1805.06370",
)
