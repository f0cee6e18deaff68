r"""DropBP (NeurIPS 2024, arXiv 2402.17812): the backward pass leaves out some residual branches in each step.

A layer adds branches to its input, ``x + f(x)``: an attention and a feed-forward network. In a step branch l is left
out of the backward pass with probability p_l: its output is detached, so that the gradient passes by it and no
activation of it is kept. The forward pass is whole.

At first every p_l is the target rate p. After a share of the steps each branch's sensitivity is measured on a batch,

    C_l = sum_theta ( ||g_theta|| - ||g_theta without branch l|| )^2

over all trained tensors theta, and the rates are allotted by the FLOPs F_l of the branches: from 0 on, always the
branch whose next step of 0.1 costs least, ``0.1 C_l`` more for each step it has, until
``sum_l (1 - p_l) F_l <= (1 - p) sum_l F_l``; no rate is above 0.9. In each step branches are drawn by their rates;
where fewer than a share p of them were drawn, those of the highest rates are left out too. All as in the code of the
paper.

Where every branch with an adapter would be left out, the paper's code skips the step; here the one with the lowest
rate stays. The drops depend on the seed and the step alone, and the rates are in checkpoints.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.core.errors import IncompatibleError
from lorabank.core.machine import distributed as processes
from lorabank.core.settings import setting
from lorabank.models.tasks.probing import undisturbed
from lorabank.training.savings.base import Saving
from lorabank.training.savings.branches import Branch, branches_of, unknown_branches
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.wrapper import Wrapper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorabank.training.context import TrainContext
    from lorabank.training.layers.attaching import Attached

_STEP, _MOST = 0.1, 0.9


@dataclass(frozen=True)
class DropBP(Saving):
    """Some residual branches are left out of the backward pass of each step, those the least that matter most."""

    paper: ClassVar[str | None] = "DropBP, arXiv 2402.17812"
    partial: ClassVar[bool] = True

    rate: float = setting(0.5, "Share of the branches' work that is left out of the backward pass.", ge=0, le=0.9)
    measured_after: float = setting(
        0.1, "Share of the steps after which rates follow sensitivities; 1 for one rate for all.", ge=0, le=1
    )

    def refusal(self, model: PreTrainedModel, adapted: Collection[str] = ()) -> IncompatibleError | None:
        """There are several processes, or the branches of the model are not known, or none is adapted."""
        if processes.count() > 1:
            return IncompatibleError(
                f"dropbp leaves gradients out, and {processes.count()} processes exchange all of them",
                hint="train in one process, or leave out --saving dropbp",
                unchanged="nothing was changed",
            )
        return unknown_branches(model, adapted)

    def attach(self, context: TrainContext, attached: Attached) -> Attached:
        """Every branch's output is detached in the steps in which it is drawn.

        Raises:
            IncompatibleError: See `refusal`.
        """
        if refusal := self.refusal(context.model):
            raise refusal
        branches = branches_of(context.model)
        dropping = _Dropping(attached.parametrization, context, attached.loss or context.loss, branches, self)
        hooks = [branch.end.register_forward_hook(dropping.hook(number)) for number, branch in enumerate(branches)]
        ends = [hook.remove for hook in hooks]
        return replace(attached, parametrization=dropping, ends=(*attached.ends, *ends))


class _Dropping(Wrapper):
    """What is trained, and what is left out meanwhile: ``rates [branches]`` and ``done``, the steps that are done."""

    rates: Tensor
    done: Tensor

    def __init__(
        self,
        inner: Parametrization,
        context: TrainContext,
        loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
        branches: Sequence[Branch],
        settings: DropBP,
    ) -> None:
        super().__init__(inner)
        self.register_buffer("rates", torch.full((len(branches),), settings.rate, dtype=torch.float64))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self._flops, self._adapted = [float(one.weights) for one in branches], [one.adapted for one in branches]
        self._settings, self._seed = settings, context.config.seed * 1_000_003 + context.number
        self._measure = partial(_norms, context, loss)  # a model among the attributes would be a part of the module
        self._known: tuple[int, Sequence[bool]] = (-1, ())
        self._fixed: Sequence[bool] | None = None
        self._on = True

    def hook(self, number: int) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        """Of a branch's last layer: its output, out of the graph where the branch is left out of this step."""

        def detach(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
            active = torch.is_grad_enabled() and (self._on or self._fixed is not None)
            return out.detach() if active and self.dropped()[number] else None

        return detach

    def dropped(self) -> Sequence[bool]:
        """Which branches are left out of the step that is under way."""
        if self._fixed is not None:
            return self._fixed
        step = int(self.done)
        if self._known[0] != step:
            generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)
            drawn = torch.rand(len(self.rates), generator=generator, dtype=torch.float64) < self.rates.cpu()
            self._known = step, completed(drawn.tolist(), self.rates.tolist(), self._settings.rate, self._adapted)
        return self._known[1]

    def after_loss(self, step: Step) -> None:
        """What else asks for gradients before the next step, as a strategy may, gets whole ones."""
        self._on = False
        super().after_loss(step)

    def before_step(self, step: Step) -> None:
        """At the end of the first share of the steps, the rates follow what each branch is worth."""
        super().before_step(step)
        share = self._settings.measured_after
        if share < 1 and self._settings.rate and step.number == max(1, round(share * step.total)):
            self.rates.copy_(torch.tensor(allotted(self._sensitivities(), self._flops, self._settings.rate)))

    def after_step(self, step: Step) -> None:
        """The next step draws anew."""
        super().after_step(step)
        self.done.fill_(step.number)
        self._on = True

    def _sensitivities(self) -> list[float]:
        count = len(self._flops)
        try:
            norms = []
            for left_out in range(-1, count):
                self._fixed = [number == left_out for number in range(count)]
                norms.append(self._measure())
        finally:
            self._fixed = None
        return [float((norms[0] - one).square().sum()) for one in norms[1:]]


def _norms(context: TrainContext, loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> Tensor:
    """The norm of the gradient of each trained tensor on the task's first batch, without dropout; float64."""
    trained = [parameter for parameter in context.model.parameters() if parameter.requires_grad]
    (batch,) = islice(context.batches(), 1)
    with undisturbed(context.model), torch.enable_grad():
        found = torch.autograd.grad(loss(context.model, batch), trained, allow_unused=True)
    none = torch.zeros((), dtype=torch.float64)
    return torch.stack([none if one is None else one.double().norm().cpu() for one in found])


def allotted(sensitivities: Sequence[float], flops: Sequence[float], rate: float) -> list[float]:
    """The rates with the least sum of sensitivities at which a share ``rate`` of the FLOPs is left out."""
    tenths, left = [0] * len(flops), float(sum(flops))
    queue = [(_STEP * cost, number) for number, cost in enumerate(sensitivities)]
    heapq.heapify(queue)
    target = (1 - rate) * left
    while left > target * (1 + 1e-12) and queue:
        cost, number = heapq.heappop(queue)
        tenths[number] += 1
        left -= _STEP * flops[number]
        if tenths[number] < round(_MOST / _STEP):
            heapq.heappush(queue, (cost + _STEP * sensitivities[number], number))
    return [_STEP * count for count in tenths]


def completed(drawn: Sequence[bool], rates: Sequence[float], rate: float, adapted: Sequence[bool]) -> list[bool]:
    """The branches of a step: at least a share ``rate`` of them, and never all that hold an adapter.

    Args:
        drawn: Which ones were drawn.
        rates: With which probability.
        rate: The target.
        adapted: Which ones hold a layer of the adapter.
    """
    dropped = list(drawn)
    for number in sorted(range(len(rates)), key=lambda one: -rates[one]):
        if sum(dropped) / len(dropped) >= rate:
            break
        dropped[number] = True
    holding = [number for number, one in enumerate(adapted) if one]
    if all(dropped[number] for number in holding):
        dropped[min(holding, key=lambda one: rates[one])] = False
    return dropped
