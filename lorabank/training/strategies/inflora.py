"""InfLoRA (CVPR 2024, arXiv 2404.00228): A is fixed outside what earlier tasks fed into the module, only B trains.

The mathematics stand in `lorabank.training.input_subspace`; each task records the covariances of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.models.facts.inputs import InputCovariance, collect_inputs
from lorabank.training.context import TrainContext
from lorabank.training.input_subspace import design_adapter, outside
from lorabank.training.layers.attaching import Attached
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization
from lorabank.training.variants.wrapper import Wrapper

ROLE = "inputs"


@dataclass(frozen=True)
class _InfLoRA(Strategy):
    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The designed A, and B as it begins."""
        fixed = FixedA(parametrization)
        attached = super().attach(context, fixed)
        current = collect_inputs(context.model, context.targets, context.batches(), context.loss)
        earlier = [InputCovariance.from_bytes(fact.data) for fact in context.objects.get(ROLE, ())]
        most = max(len(a) for a in fixed.A.values())
        designed = design_adapter(earlier, current, context.targets, most)
        # experts without a token keep what they have outside of the memory
        kept = {module: fixed.A[module] for module in context.targets if module not in designed}
        fixed.fix(designed | {module: outside(earlier, module, A) for module, A in kept.items()})
        return attached

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """What the task feeds into its modules now that it is learnt."""
        return {ROLE: collect_inputs(context.model, context.targets, context.batches(), context.loss).to_bytes()}


class FixedA(Wrapper):
    """A parametrization with an A that is given, and everything else as it is; what made A rests.

    Raises:
        ConfigError: Nothing but A depends on what it trains.
    """

    def __init__(self, inner: Parametrization) -> None:
        super().__init__(inner)
        factors = inner.factors()
        trained = [parameter for parameter in inner.parameters() if parameter.requires_grad]
        rest = torch.stack([b.sum() for b in factors.B.values()]).sum()
        moves = torch.autograd.grad(rest, trained, allow_unused=True) if rest.requires_grad else [None] * len(trained)
        if not any(gradient is not None for gradient in moves):
            raise ConfigError("the variant has no B that is trained apart from A", unchanged="nothing was changed")
        for parameter, gradient in zip(trained, moves, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.A = {site: a.detach().clone() for site, a in factors.A.items()}

    def fix(self, A: Mapping[str, Tensor]) -> None:
        """Give it its A by site, ``[r, d_in]`` with the rows of the site first."""
        for site, a in A.items():
            self.A[site].copy_(a[: len(self.A[site])])

    def factors(self) -> LoraFactors:
        """The wrapped factors with the given A."""
        return replace(self.inner.factors(), A=self.A)

    def moved(self) -> Sequence[LoraFactors]:
        """What the wrapped one moved, over the given A."""
        return [replace(factors, A=self.A) for factors in self.inner.moved()]


INFLORA = _InfLoRA(
    "inflora",
    "active",
    needs=(ROLE,),
    confined=True,
    about="A new adapter whose A is fixed outside what earlier tasks fed into the module; only B is trained.",
    paper="InfLoRA, arXiv 2404.00228",
)
