r"""HiddenKey (Findings of ACL 2024, arXiv 2403.00812): dropout of attention keys and of hidden values, and two passes.

It leaves out parts of the forward pass, so that an adapter of few parameters does not overfit:

    DropKey, by columns      softmax(Q K^T s + c D),   D_j ~ Bernoulli(p_key) for every key, c -> -inf
    HiddenCut, by elements   h * M / (1 - p_hidden),   M ~ Bernoulli(1 - p_hidden), of each feed-forward network

Each batch is passed twice, with other draws, and the passes are held together by a bidirectional divergence:

    L = (CE_1 + CE_2) / 2 + alpha (KL(P_1 || P_2) + KL(P_2 || P_1)) / 2

This is our reading of the paper, of which there is no code: the columns are drawn for each text, layer and head alike;
hidden values are what a feed-forward network adds to its input; P are the probabilities of classes, or of the tokens
of an answer. A query all of whose keys are drawn sees them as if none were: c is large and finite.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.errors import IncompatibleError
from lorabank.core.settings import setting
from lorabank.training.savings.base import Saving
from lorabank.training.savings.branches import branches_of, unknown_branches
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.wrapper import Wrapper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorabank.training.context import TrainContext
    from lorabank.training.layers.attaching import Attached
    from lorabank.training.savings.attention import Attend, Result

_DROPPED = -1e4
"""What is added to the logit of a dropped key: its exponential is 0 beside any other, and their differences stay."""


@dataclass(frozen=True)
class HiddenKey(Saving):
    """Keys of the attention and hidden values are dropped, and two passes over a batch are held together."""

    paper: ClassVar[str | None] = "HiddenKey, arXiv 2403.00812"
    attends: ClassVar[bool] = True

    key_dropout: float = setting(0.1, "Share of the keys that an attention does not see.", ge=0, lt=1)
    hidden_dropout: float = setting(0.1, "Share of a feed-forward network's outputs that are 0.", ge=0, lt=1)
    alpha: float = setting(1.0, "Weight of the divergence between two passes; 0 for one pass.", ge=0)

    def refusal(self, model: PreTrainedModel, adapted: Collection[str] = ()) -> IncompatibleError | None:
        """The model has an attention of its own, or its branches are not known, or none is adapted."""
        from lorabank.training.savings.attention import fixed_attention  # `lorabank methods` needs no transformers

        return fixed_attention(model) or unknown_branches(model, adapted)

    def attach(self, context: TrainContext, attached: Attached) -> Attached:
        """The loss of a batch is that of two passes with dropped keys and hidden values.

        Raises:
            IncompatibleError: The strategy has a loss of its own; or see `refusal`.
        """
        from lorabank.training.savings.attention import replace_attention

        if refusal := self.refusal(context.model):
            raise refusal
        if attached.loss is not None:
            raise IncompatibleError(
                f"strategy {context.config.strategy!r} has a loss of its own, which cannot be asked twice",
                hint="another --strategy, or no --saving",
                unchanged="the adapter was not added to the bank",
            )
        dropping = _Dropping(attached.parametrization)
        networks = [branch.end for branch in branches_of(context.model) if not branch.attention]
        hooks = [network.register_forward_hook(dropping.hook(self.hidden_dropout)) for network in networks]
        restore = replace_attention(context.model, partial(dropping.attend, self.key_dropout))
        return replace(
            attached,
            parametrization=dropping,
            loss=partial(_loss, dropping, context, self.alpha),
            ends=(*attached.ends, restore, *(hook.remove for hook in hooks)),
        )


class _Dropping(Wrapper):
    """What is trained, and whether a batch is under way, whose passes alone drop something."""

    def __init__(self, inner: Parametrization) -> None:
        super().__init__(inner)
        self.on = False

    def hook(self, p: float) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        """Of a feed-forward network's last layer: its output with elements dropped."""

        def drop(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
            return F.dropout(out, p) if self.on and torch.is_grad_enabled() and p else None

        return drop

    def attend(
        self,
        p: float,
        usual: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        /,
        **given: Any,
    ) -> Result:
        """An attention with columns of its logits dropped."""
        if self.on and torch.is_grad_enabled() and p:
            columns = torch.rand(query.shape[0], query.shape[1], 1, key.shape[2], device=query.device) < p
            bias, usual_bias = _DROPPED * columns.to(query.dtype), given.get("position_bias")
            given["position_bias"] = bias if usual_bias is None else usual_bias + bias
        return usual(module, query, key, value, mask, **given)

    def after_loss(self, step: Step) -> None:
        """The batches of a step have been passed, backward too."""
        self.on = False
        super().after_loss(step)


def _loss(
    dropping: _Dropping, context: TrainContext, alpha: float, model: nn.Module, inputs: dict[str, Tensor]
) -> Tensor:
    dropping.on = True
    first: list[Tensor] = []

    def ask(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        first.append(logits)
        return context.weight(labels, rows) * F.cross_entropy(logits, labels, reduction="none")

    def ask_again(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        own, other = logits.log_softmax(-1), first.pop(0).log_softmax(-1)
        # KL(P || Q) + KL(Q || P) = sum (P - Q) (log P - log Q)
        apart = ((own.exp() - other.exp()) * (own - other)).sum(-1)
        learnt = context.weight(labels, rows) * F.cross_entropy(logits, labels, reduction="none")
        return learnt / 2 + alpha / 2 * apart

    once = context.mean(ask, model, inputs)
    if not alpha:
        return once
    again = context.mean(ask_again, model, inputs)
    return once / 2 + again
