"""Gradient episodic memory: no step may raise the loss of earlier tasks' kept rows, to first order.

    gem    With g the gradient of a step and g_k that of the mean loss of all of task k's kept rows, the step takes the
           nearest gradient whose product with no g_k is negative (Lopez-Paz and Ranzato 2017, arXiv 1706.08840).
           Where a product of g is negative, with G = [g_1; ...; g_t-1],

               min_v 1/2 v^T G G^T v + g^T G^T v,   v >= margin,      and   G^T v + g   is taken

           With a margin above 0, as in the authors' code, the taken gradient favours the earlier tasks.
    agem   With r the gradient of a batch of all kept rows, drawn anew for each step (Chaudhry et al. 2019,
           arXiv 1812.00420),

               g - (g^T r / r^T r) r     is taken where   g^T r < 0,     else g

A single adapter is trained on every task in turn. The gradients are those of its A and B, and of the task's head, on
which earlier tasks depend only if they share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lorabank.algebra.nonnegative import nonnegative_quadratic
from lorabank.core.settings import setting
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.loop.guiding import Guided, kept_gradient
from lorabank.training.strategies.replay import Rehearsal
from lorabank.training.variants.base import Parametrization, Step


@dataclass(frozen=True)
class Constrained(Rehearsal, ABC):
    """A single adapter whose gradients are constrained by rows of earlier tasks that are not among the batches."""

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The last adapter continues training; its gradients are constrained."""
        if not any(task.rows for task in context.memory):
            return super().attach(context, parametrization)
        later = context.without_past()

        def guide(gradient: Tensor, step: Step) -> Tensor:
            return self.taken(gradient, step, later, partial(kept_gradient, later))

        return super().attach(context, Guided(parametrization, context.model, guide))

    @abstractmethod
    def taken(
        self, gradient: Tensor, step: Step, context: TrainContext, gradient_of: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """The gradient ``[p]`` that a step takes; ``gradient_of`` gives that of the mean loss of some rows."""


@dataclass(frozen=True)
class _GEM(Constrained):
    margin: float = setting(0.5, "Least weight of each earlier task's gradient in a step that is corrected.", ge=0)

    def taken(
        self, gradient: Tensor, step: Step, context: TrainContext, gradient_of: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """The solution of the quadratic program over all earlier tasks."""
        old = torch.stack([gradient_of(list(task.rows)) for task in context.memory if task.rows])
        return constrained(gradient, old, self.margin)


def constrained(gradient: Tensor, old: Tensor, margin: float) -> Tensor:
    """The gradient that GEM takes.

    Args:
        gradient: Of the step, ``[p]``.
        old: Of each earlier task, ``[t, p]``.
        margin: Least value of the dual variables where a constraint is violated.

    Returns:
        ``[p]``, in the dtype of ``gradient``; ``gradient`` itself where no product is negative.
    """
    products = old.double() @ gradient.double()
    if bool((products >= 0).all()):
        return gradient
    gram = old.double() @ old.double().mT
    v = nonnegative_quadratic(gram, products + margin * gram.sum(-1)) + margin
    return gradient + (v.to(gram) @ old.double()).to(gradient)


@dataclass(frozen=True)
class _AGEM(Constrained):
    def taken(
        self, gradient: Tensor, step: Step, context: TrainContext, gradient_of: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """The projection, with as many kept rows as a batch has; which ones depends on seed and step alone."""
        rows = [row for task in context.memory for row in task.rows]
        generator = torch.Generator().manual_seed(context.config.seed * 1_000_003 + step.number)
        drawn = torch.randperm(len(rows), generator=generator)[: context.config.batch_size]
        return projected(gradient, gradient_of([rows[i] for i in drawn.tolist()]))


def projected(gradient: Tensor, reference: Tensor) -> Tensor:
    """``gradient [p]`` without its part against ``reference [p]``; itself where it has none."""
    product = gradient.double() @ reference.double()
    if float(product) >= 0:
        return gradient
    return gradient - (product / reference.double().square().sum()).to(gradient) * reference


GEM = _GEM(
    "gem",
    "continued",
    replay="reservoir",
    mixed=False,
    about="A single adapter is trained on every task in turn; no step may raise the loss of an earlier task's rows.",
    paper="GEM, arXiv 1706.08840",
)
AGEM = _AGEM(
    "agem",
    "continued",
    replay="reservoir",
    mixed=False,
    about="A single adapter is trained on every task in turn; no step may raise the mean loss of earlier rows.",
    paper="A-GEM, arXiv 1812.00420",
)
