"""Online-LoRA: what holds a new adapter in a stream, and when a new one begins (arXiv 2411.05663).

    L = CE(batch) + CE(hard rows) + lambda / 2 * sum_i w_i theta_i^2
    g_i = sum_n ( d l_n / d theta_i )^2,    l_n = -log p(y^_n | x_n) of hard row n
    w <- g / c + (1 - 1 / c) w              after plateau c

theta are the entries of A and B of the adapter that is trained, y^ what the model itself answers (of a language model
the row's own answer). The hard rows are those of the highest loss so far. When mean and variance of the window of the
last losses lie below their thresholds, the distribution of the rows is learnt: the adapter is frozen, and a new one
begins beside it. The next plateau counts only after a peak: a window whose mean lies more than a standard deviation
above the one that was flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, pvariance

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.models.facts.fisher import (
    Anchor,
    Importance,
    accumulated,
    diagonal_fisher,
    fisher_from_bytes,
    fisher_to_bytes,
    summed,
)
from lorabank.models.tasks.addressed import without_address
from lorabank.training.context import TaskFact, TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.penalties.ewc import EWC
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization

ROLE = "importance in the stream"

_LOOKED_AT = 256
"""The task's rows among which the hard ones are looked for, where they come from no stream."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class LossWindow:
    """The last losses of a stream, and whether a plateau among them would be a new one.

    Attributes:
        losses: The newest at the end.
        peaked: Whether the losses rose since the last plateau; true before the first.
        mean: Mean of the window that was flat last.
        variance: Its variance.
    """

    losses: tuple[float, ...] = ()
    peaked: bool = True
    mean: float = 0.0
    variance: float = 0.0

    def seen(self, loss: float, length: int) -> LossWindow:
        """With one more loss; a window of ``length`` losses."""
        losses = (*self.losses, loss)[-length:]
        rose = fmean(losses) > self.mean + sqrt(self.variance)
        return replace(self, losses=losses, peaked=self.peaked or rose)

    def flat(self, length: int, mean: float, variance: float) -> bool:
        """Whether the window is full, lies below both thresholds, and no plateau was found since the last peak."""
        full = self.peaked and len(self.losses) == length
        return full and fmean(self.losses) < mean and pvariance(self.losses) < variance

    def settled(self) -> LossWindow:
        """After its plateau was taken: the next one counts after a peak."""
        return LossWindow(self.losses, False, fmean(self.losses), pvariance(self.losses))


def hardest(losses: Sequence[float], count: int) -> list[int]:
    """The indices of the ``count`` highest losses, highest first; of equal ones the first."""
    return sorted(range(len(losses)), key=lambda i: (-losses[i], i))[:count]


def importance(
    model: nn.Module,
    layers: dict[str, LoraLinear],
    rows: Sequence[Inputs],
    loss: Callable[[nn.Module, Inputs], Tensor],
) -> Importance:
    """The sum over rows of the squared gradients of ``l_n`` (this module).

    Args:
        model: Holds the layers; without dropout.
        layers: The adapter.
        rows: One row each, as inputs on the model's device.
        loss: Mean loss of the labelled terms of a row.
    """
    answered = [_answered(model, row) for row in rows]
    return _scaled(diagonal_fisher(model, layers, answered, summed(loss)), len(rows))


def averaged(before: Importance, own: Importance, plateaus: int) -> Importance:
    """The running mean over ``plateaus`` plateaus, of which ``own`` is the last."""
    return accumulated(before, _scaled(own, 1 / plateaus), gamma=1 - 1 / plateaus)


@torch.no_grad()
def _answered(model: nn.Module, row: Inputs) -> Inputs:
    """A classifier's row with the label that the model itself gives; one of a language model as it is."""
    if row["labels"].dim() > 1:
        return row
    asked = {name: value for name, value in without_address(row).items() if name != "labels"}
    return {**row, "labels": model(**asked).logits.argmax(-1)}


def _scaled(one: Importance, factor: float) -> Importance:
    A, B = ({name: factor * value for name, value in part.items()} for part in (one.A, one.B))
    return Importance(A, B)


@dataclass(frozen=True)
class _Held(Attached):
    """An adapter that is held by ``plateaus`` plateaus before."""

    plateaus: int = 0


@dataclass(frozen=True)
class OnlineLora(Strategy):
    """The strategy, of a stream and of tasks whose ends are given."""

    importance_weight: float = setting(2000.0, "Weight lambda of the important entries of the new adapter.", ge=0)
    hard_rows: int = setting(4, "How many rows of the highest loss are kept and trained on again.", ge=1)
    window: int = setting(5, "Batches in the window of losses.", ge=2)
    mean_threshold: float = setting(0.5, "A plateau's mean loss is below this.", gt=0)
    variance_threshold: float = setting(0.05, "A plateau's variance of the losses is below this.", gt=0)

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """Beside the earlier adapters, its entries held near 0 by their importance.

        Raises:
            ConfigError: The rank is another one than before.
        """
        attached = super().attach(context, parametrization)
        facts = context.objects.get(ROLE, ())
        if not facts:
            return attached
        penalties = (("importance", self.importance_weight, EWC()),)
        held = replace(attached, penalties=penalties, anchor=self._zero(attached.layers, facts[-1]))
        return _Held(**vars(held), plateaus=len(facts))

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """The importance of the entries so far, on the hard ones of the context's rows."""
        rows, loss = list(_rows(context.batches(), _LOOKED_AT)), context.negative_log_likelihood
        training = context.model.training
        context.model.eval()
        with torch.no_grad():
            losses = [float(loss(context.model, row)) for row in rows]
        hard = [rows[i] for i in hardest(losses, self.hard_rows)]
        own = importance(context.model, attached.layers, hard, loss)
        context.model.train(training)
        if isinstance(attached, _Held) and attached.anchor:
            own = averaged(attached.anchor.importance, own, attached.plateaus + 1)
        return {ROLE: fisher_to_bytes(own)}

    def _zero(self, layers: dict[str, LoraLinear], fact: TaskFact) -> Anchor:
        """The importances around 0, as an anchor of the layers' shapes."""
        found = fisher_from_bytes(fact.data)
        for name, layer in layers.items():
            if name in found.A and (found.A[name].shape, found.B[name].shape) != (
                layer.lora_A.shape,
                layer.lora_B.shape,
            ):
                raise ConfigError(
                    f"strategy {self.name!r} weighs the entries of adapters of rank {len(found.A[name])}, not "
                    f"{len(layer.lora_A)}",
                    hint=f"--r {len(found.A[name])}",
                    unchanged="nothing was changed",
                )
        A = {name: torch.zeros_like(value) for name, value in found.A.items()}
        B = {name: torch.zeros_like(value) for name, value in found.B.items()}
        return Anchor(LoraFactors(A, B, dict.fromkeys(A, 1.0) | {n: one.scaling for n, one in layers.items()}), found)


def _rows(batches: Iterable[Inputs], count: int) -> Iterable[Inputs]:
    """The first rows of some batches, one by one."""
    for batch in batches:
        for i in range(len(batch["labels"])):
            if count == 0:
                return
            count -= 1
            yield {name: value[i : i + 1] for name, value in batch.items()}


ONLINE_LORA = OnlineLora(
    "online-lora",
    "active",
    reads=(ROLE,),
    about="A new adapter beside the earlier ones, its important entries held near 0; a stream's tasks are found.",
    paper="Online-LoRA, arXiv 2411.05663",
)
