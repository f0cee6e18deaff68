"""Synaptic intelligence (Zenke et al. 2017, arXiv 1703.04200): importances gathered along the path of the training.

A single adapter is trained on every task in turn. With g the gradient of the task loss alone, without penalties and
clipping, and d the change of an entry in each optimizer step, the task's importance is

    omega_i = -sum_steps g_i d_i,      Omega_i = max(0, omega_i) / ((theta_i - theta_i at the start)^2 + damping)

added up over the tasks. `lorabank.training.penalties.si` holds the entries by it. The sum is a buffer, so a resumed
training continues it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.models.facts.fisher import Importance
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.strategies.ewc import Consolidated
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.wrapper import Wrapper


@dataclass(frozen=True)
class _SI(Consolidated):
    damping: float = setting(0.1, "What is added to the squared change of an entry, xi of the paper.", gt=0)

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The last adapter continues training, and its path is watched."""
        return super().attach(context, Path(parametrization))

    def importance(self, context: TrainContext, attached: Attached) -> Importance:
        """What each entry's way took off the loss, for the square of its length."""
        path = attached.parametrization
        assert isinstance(path, Path)
        values = [
            (omega.clamp(min=0) / ((now - start).square() + self.damping)).detach().cpu()
            for omega, now, start in zip(path.omega, trained_factors(path), path.start, strict=True)
        ]
        sites = list(path.factors().A)
        return Importance(dict(zip(sites, values, strict=False)), dict(zip(sites, values[len(sites) :], strict=True)))


def trained_factors(parametrization: Parametrization) -> list[Tensor]:
    """A and B of a plain parametrization, site by site."""
    factors = parametrization.factors()
    return [*factors.A.values(), *factors.B.values()]


class Path(Wrapper):
    """A plain parametrization that adds up what its steps take off the loss.

    Attributes:
        start: A and B as they began, site by site.
        omega: The sums, of the same shapes.
    """

    def __init__(self, inner: Parametrization) -> None:
        super().__init__(inner)
        self.start = [one.detach().clone() for one in trained_factors(inner)]
        for i, one in enumerate(self.start):
            self.register_buffer(f"omega_{i}", torch.zeros_like(one))
        self._step: list[tuple[Tensor, Tensor]] = []

    @property
    def omega(self) -> list[Tensor]:
        """See the class."""
        return [cast(Tensor, getattr(self, f"omega_{i}")) for i in range(len(self.start))]

    def after_loss(self, step: Step) -> None:
        """Remember where the step begins, and the slope there."""
        super().after_loss(step)
        trained = trained_factors(self.inner)
        slopes = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in trained]
        self._step = [(slope, one.detach().clone()) for slope, one in zip(slopes, trained, strict=True)]

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Add what the step took off the loss, to first order."""
        for omega, now, (slope, before) in zip(self.omega, trained_factors(self.inner), self._step, strict=True):
            omega -= slope * (now - before)
        super().after_step(step)


SI = _SI(
    "si",
    "continued",
    "si",
    needs=("path-importance",),
    about="A single adapter is trained on every task in turn, the entries that lowered the loss held where they were.",
    paper="SI, arXiv 1703.04200",
)
