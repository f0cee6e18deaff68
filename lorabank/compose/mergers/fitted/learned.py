"""``learned``: one weight for each task and module, found by gradient on the kept rows of all tasks.

    delta W of module m = sum_k w_mk delta W_k
    minimise over w: the mean over the tasks of the mean loss of their kept rows, each under its own head

Adapters and heads stay as they are; w are a few hundred numbers, so that 64 rows of a task are enough. Every step is
Adam's, on all rows: nothing is drawn, and the order of tasks and rows changes nothing but the rounding. It is the form
of AdaMerging (arXiv 2310.02575: a coefficient for each layer and task) with labels in the place of entropy.

One member has nothing to be weighed against: its weight is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from lorabank.compose.mergers.base import ByModule, Merger, Sources, Told
from lorabank.compose.mergers.kept import KeptRows
from lorabank.core.errors import DivergedError
from lorabank.core.settings import setting
from lorabank.core.states import Over
from lorabank.models.gates.static import StaticWeights


@dataclass(frozen=True)
class Learned(Merger):
    """The sum of the delta weights with a weight for each task and module, learnt on kept rows."""

    paper = "the supervised form of AdaMerging, arXiv 2310.02575"
    fitted: ClassVar[bool] = True
    over: ClassVar[Over] = "states"

    rows: int = setting(64, "Maximum number of kept rows of each task.", ge=1)
    steps: int = setting(32, "Number of steps of Adam, each on all rows.", ge=1)
    learning_rate: float = setting(3e-2, "Learning rate of the weights.", gt=0, le=10)
    start: float = setting(0.5, "Initial value of every weight.")

    def merge(self, sources: Sources) -> Mapping[str, float] | Told:
        """The weights, and the loss before and after."""
        if len(sources.tasks) == 1:
            return dict.fromkeys(sources.tasks, 1.0)
        kept = sources.kept.sample(self.rows)
        gate = StaticWeights(kept.runtime.states(kept.states), self.start)
        losses = self._learn(kept, gate)
        vectors = list(dict.fromkeys(sources.adapters))
        place = [vectors.index(adapter) for adapter in sources.adapters]
        shared = torch.tensor([sources.adapters.count(adapter) for adapter in sources.adapters])
        made = ByModule({module: own.double()[place] / shared for module, own in gate.tensors().items()})
        loss = {"first": losses[0], "last": losses[-1]}
        return Told(made, {"loss": loss, "mean_weight": made.mean(sources.tasks)})

    def _learn(self, kept: KeptRows, gate: StaticWeights) -> list[float]:
        """The loss before each step and at the end."""
        optimizer = torch.optim.Adam(gate.parameters(), lr=self.learning_rate)
        parameters = list(gate.parameters())
        losses = []
        kept.observer.start("weights by module", self.steps)
        try:
            with kept.under(gate), torch.enable_grad():
                for step in range(self.steps + 1):
                    optimizer.zero_grad()
                    losses.append(self._backward(kept, parameters))
                    if not math.isfinite(losses[-1]):
                        raise DivergedError(
                            f"the weights diverged at step {step + 1}",
                            unchanged="the composition was not added to the bank",
                            hint=f"lower it: --set learning_rate={self.learning_rate / 10:g}",
                        )
                    if step < self.steps:
                        optimizer.step()
                        kept.observer.advance(step + 1, {"loss": losses[-1]})
        finally:
            kept.observer.finish()
        return losses

    def _backward(self, kept: KeptRows, parameters: list[torch.nn.Parameter]) -> float:
        """Add the gradient of the mean over the tasks, batch by batch; gives the mean."""
        total = 0.0
        for task in kept.tasks:
            share = 1 / (len(kept.tasks) * len(kept.members[task].texts))
            for count, loss in kept.batches(task):
                part = loss() * (count * share)
                if part.requires_grad:  # a batch none of whose rows fits says nothing
                    part.backward(inputs=parameters)
                total += float(part.detach())
        return total
