"""Learning without forgetting (Li and Hoiem 2016, arXiv 1606.09282): the old heads' answers on the new rows.

A single adapter is trained on every task in turn, and no old row is kept. Before training, the model as it is answers
the new rows under every old head; with p and q these and its later answers, both at temperature T,

    L = CE(y, q_new) + lambda_o sum_k mean_i -sum_c p_ikc^(T) log q_ikc^(T)

The recorded answers are constants, so the divergence D(p || q) is computed, which differs from the cross entropy by a
constant. A language model has no heads: it answers the tokens of the new rows' answers once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.models.facts.answers import divergence
from lorabank.models.tasks.addressed import under_head
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.loop.recalling import Recalled, recorded_answers
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization


@dataclass(frozen=True)
class _LwF(Strategy):
    temperature: float = setting(2.0, "What logits are divided by before answers are compared.", gt=0)
    lambda_old: float = setting(1.0, "Weight of the divergence from the answers of the old heads.", ge=0)
    top_answers: int = setting(64, "Choices that are compared, of each label or token; the rest counts as one.", ge=1)

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The last adapter continues training; what it answers under each old head is the target.

        Raises:
            ConfigError: The tasks share one head.
        """
        attached = super().attach(context, parametrization)
        if not context.memory:
            return attached
        if context.config.head == "shared":
            raise ConfigError(
                f"strategy {self.name!r} asks the head of each earlier task, and this bank's tasks share one",
                hint="use another --strategy, for example olora-distil",
                unchanged="nothing was changed",
            )
        own, T, later = range(context.memory[0].rows.start), self.temperature, context.without_past()
        recorded = {
            head: Recalled(*recorded_answers(context, own, self.top_answers, head=head, temperature=T))
            for head in dict.fromkeys(task.head for task in context.memory)
        }

        def old(model: nn.Module, inputs: dict[str, Tensor], head: int | None, stored: Recalled) -> Tensor:
            def each(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
                return divergence(stored.at(rows), logits / T)

            return later.mean(each, model, under_head(inputs, head))

        def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
            kept = [old(model, inputs, head, stored) for head, stored in recorded.items()]
            return self.lambda_old * torch.stack(kept).sum() + later.loss(model, inputs)

        return replace(attached, loss=loss)


LWF = _LwF(
    "lwf",
    "continued",
    heads=True,
    single_rows=True,
    about="A single adapter is trained on every task in turn, and keeps the old heads' answers on the new rows.",
    paper="LwF, arXiv 1606.09282",
)
