"""DER++: kept rows with the logits that the model gave (Buzzega et al. 2020, arXiv 2004.07211).

A single adapter is trained on every task in turn. Beside each batch two batches of earlier rows are drawn, each
uniformly among those of the reservoir (`lorabank.training.reservoir`):

    L = CE(batch) + alpha mean_i |z_i - h_i|^2 / C + beta CE(another draw)

z_i are the stored logits of a row and h_i the model's, C their number. They are stored when a task is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lorabank.core.settings import setting
from lorabank.models.facts.answers import squared_distance
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.loop.recalling import ROLE, recall_memory, record_kept
from lorabank.training.strategies.replay import Rehearsal
from lorabank.training.variants.base import Parametrization


@dataclass(frozen=True)
class _DER(Rehearsal):
    alpha: float = setting(0.1, "Weight of the squared difference from the stored logits.", ge=0)
    beta: float = setting(0.5, "Weight of the cross entropy of earlier rows' labels; 0 for plain DER.", ge=0)
    top_answers: int = setting(64, "Logits that are stored, the largest ones, of each label or token.", ge=1)

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The last adapter continues training; each batch has two of earlier rows beside it."""
        attached = super().attach(context, parametrization)
        rows = [row for task in context.memory for row in task.rows]
        if not rows:
            return attached
        stored, later = recall_memory(context), context.without_past()

        def drawn() -> dict[str, Tensor]:
            # torch's own generator: a checkpoint holds its state
            return later.inputs([rows[i] for i in torch.randperm(len(rows))[: later.config.batch_size].tolist()])

        def each(logits: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
            return squared_distance(stored.at(numbers), logits)

        def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
            old = self.alpha * later.mean(each, model, drawn())
            if self.beta:
                old = old + self.beta * later.loss(model, drawn())
            return old + later.loss(model, inputs)

        return replace(attached, loss=loss)

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """The logits of the task's own kept rows."""
        return record_kept(context, self.top_answers)


DER = _DER(
    "der",
    "continued",
    replay="reservoir",
    mixed=False,
    single_rows=True,
    needs=(ROLE,),
    about="A single adapter is trained on every task in turn, held at stored logits and labels of earlier rows.",
    paper="DER++, arXiv 2004.07211",
)
