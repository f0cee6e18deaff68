"""O-LoRA with kept rows, which are trained towards what the model said of them when their task had just been learnt.

Earlier adapters are frozen and active, and the new one is held orthogonal to them (arXiv 2310.14152). Rows of earlier
tasks are among those of each epoch. Their labels are not learnt again: with p_i the stored probabilities of row i and
q_i those of the model as it is,

    L = mean over all rows of   CE(y_i, q_i)   for a new row,   sum_c p_ic (log p_ic - log q_ic)   for an earlier one

which is distillation on rehearsed rows, as DER does it with logits (arXiv 2004.07211). When a task is learnt, the
answers on its own kept rows are recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.settings import setting
from lorabank.models.facts.answers import divergence
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.loop.recalling import ROLE, recall_memory, record_kept
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization


@dataclass(frozen=True)
class _OLoraDistil(Strategy):
    task_rows: int = setting(64, "Rows of each task that are kept, and trained on again.", ge=1)
    replay_rows: int = setting(200, "Rows of earlier tasks together that are trained on again.", ge=1)
    top_answers: int = setting(
        64, "Choices whose probability is stored, of each label or token; the rest is one.", ge=1
    )

    def replayed(self, seen: int) -> int:
        """The kept rows, or as many of them as all tasks together may have."""
        return min(seen, self.replay_rows)

    def kept(self, rows: int) -> int:
        """The share of each task."""
        return self.task_rows

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The new adapter; rows of earlier tasks are judged by their stored answers."""
        attached = super().attach(context, parametrization)
        if not context.memory:
            return attached
        stored, first = recall_memory(context), context.memory[0].rows.start
        mean, weight = context.mean, context.weight

        def each(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
            new, old = rows < first, rows >= first
            learnt = weight(labels[new], rows[new]) * F.cross_entropy(logits[new], labels[new], reduction="none")
            return torch.cat([learnt, divergence(stored.at(rows[old]), logits[old])])

        def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
            return mean(each, model, inputs)

        return replace(attached, loss=loss)

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """The answers on the task's own kept rows."""
        return record_kept(context, self.top_answers)


OLORA_DISTIL = _OLoraDistil(
    "olora-distil",
    "active",
    "orthogonal",
    replay="reservoir",
    single_rows=True,
    needs=(ROLE,),
    about="O-LoRA, and earlier rows are trained towards the answers that the model gave when it had learnt them.",
    paper="O-LoRA, arXiv 2310.14152; distillation on kept rows as in DER, arXiv 2004.07211",
)
