"""The gradient of each step, changed by what kept rows of earlier tasks say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lorabank.core.machine import distributed as processes
from lorabank.models.tasks.probing import undisturbed
from lorabank.training.context import TrainContext
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.wrapper import Wrapper

Guide = Callable[[Tensor, Step], Tensor]
"""From the gradient of the task loss and the step to the gradient that is taken, both float32 ``[p]``."""


class Guided(Wrapper):
    """A parametrization whose gradient passes a guide before penalties and clipping.

    Args:
        inner: A plain one, whose factors are what is trained.
        model: Holds them and the head, which the guide sees too.
        guide: Called once for each optimizer step.
    """

    def __init__(self, inner: Parametrization, model: nn.Module, guide: Guide) -> None:
        super().__init__(inner)
        self._trained = partial(trained_parameters, model)  # a module among its attributes would be a part of it
        self._guide = guide

    def after_loss(self, step: Step) -> None:
        """What is trained gets the gradient that the guide gives."""
        super().after_loss(step)
        trained = self._trained()
        found = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        taken = self._guide(torch.cat([one.flatten() for one in found]), step)
        for one, part in zip(trained, taken.split([one.numel() for one in trained]), strict=True):
            one.grad = part.view_as(one).clone()


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What is trained of a model: the factors, and the task's head."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def kept_gradient(context: TrainContext, rows: Sequence[int]) -> Tensor:
    """The gradient of the mean loss of some rows, without dropout, over their labelled terms: float32 ``[p]``.

    Several processes that ask for the same rows get the same.
    """
    size, trained = context.config.batch_size, trained_parameters(context.model)
    total, terms = torch.zeros(sum(one.numel() for one in trained), device=context.model.device), 0
    for first in range(0, len(rows), size):
        inputs = context.inputs(rows[first : first + size])
        here = int((inputs["labels"] >= 0).sum())
        with undisturbed(context.model), torch.enable_grad():
            loss = context.loss(context.model, inputs)
            parts = torch.autograd.grad(loss, trained, allow_unused=True)
        whole = [torch.zeros_like(one) if part is None else part for one, part in zip(trained, parts, strict=True)]
        total, terms = total + here * torch.cat([part.flatten() for part in whole]), terms + here
    return processes.averaged(total / max(terms, 1))
