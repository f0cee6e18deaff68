"""Putting a parametrization on a model: the past into the weights or beside them, the new factors into layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack
from lorabank.models.bases.blocks import of_modules
from lorabank.training.context import TrainContext
from lorabank.training.layers.layer import LoraLinear, attach_factors, fold
from lorabank.training.variants.base import Parametrization

if TYPE_CHECKING:
    from lorabank.models.facts.fisher import Anchor
    from lorabank.training.penalties.base import Penalty


@dataclass(frozen=True)
class Attached:
    """An adapter that is ready to be trained.

    Attributes:
        layers: Its layers by the sites' names.
        parametrization: What is trained.
        penalties: Name, weight and penalty of what the strategy itself adds to the loss.
        anchor: What holds an adapter that is continued, for penalties that ask for it.
        loss: The loss of a batch, if it is another one than the context's.
        ends: Called when the training has ended, whatever its end.
    """

    layers: dict[str, LoraLinear]
    parametrization: Parametrization
    penalties: tuple[tuple[str, float, Penalty], ...] = ()
    anchor: Anchor | None = None
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None
    ends: tuple[Callable[[], None], ...] = ()


def attach(context: TrainContext, parametrization: Parametrization) -> Attached:
    """Attach what is trained; the frozen past answers with it.

    The past is folded into the weights, where it costs no forward time. Under a row gain, which multiplies the
    untouched weight alone, it stays beside them as factors.
    """
    factors, shift = parametrization.factors(), parametrization.shift()
    past = context.earlier_by_site if factors.gain else None
    folded = [context.earlier] if context.earlier else []
    if shift:
        taken = replace(shift, B={site: -b for site, b in shift.B.items()})
        folded.append(AdapterStack.build({"shift": of_modules(taken, context.sites)}))
    fold(context.model, *folded, beside=context.sites if factors.gain else ())
    beside = past.combine(torch.ones(len(past.names))) if past else None
    dropout = context.config.lora_dropout if parametrization.drops_inputs else 0.0
    return Attached(attach_factors(context.model, factors, dropout, beside), parametrization)
