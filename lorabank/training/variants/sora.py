r"""SoRA (EMNLP 2023, arXiv 2311.11696): a gate for every component, which a proximal step sets to exactly 0.

    ΔW = s B diag(g) A,    g ~ N(0, 1) at the start
    L = CE + λ mean |g|,    after every step  g ← sign(g) max(|g| − ξ, 0)

The released code writes the last line as three statements in place, which send every ``|g|`` between ξ and 2 ξ to 0;
it is the soft threshold of the paper here. Gates have no weight decay, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Step, Variant
from lorabank.training.variants.components import Components

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class SoRA(Variant):
    """A, B and a sparse gate for every component are trained."""

    paper: ClassVar[str | None] = "SoRA, arXiv 2311.11696"
    prunes: ClassVar[bool] = True

    sparsity: float = setting(10.0, "Weight of the mean |g| in the loss.", ge=0)
    threshold: float = setting(3e-4, "What every gate loses of its size after a step; at 0 it stays 0.", ge=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B where the start begins, the gates drawn from a normal distribution."""
        begun = start.begin(context)
        gates = {site: torch.randn(len(a), device=a.device) for site, a in begun.A.items()}
        return Gated(begun, gates, context.scaling, self)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of LoRA and the gates."""
        return super().parameters(d_out, d_in, r) + r


class Gated(Components):
    """A, B and the gates.

    Args:
        start: A and B by site.
        weights: The gates by site.
        scaling: See `Components`.
        settings: Those of the variant.
    """

    def __init__(self, start: LoraFactors, weights: dict[str, Tensor], scaling: float, settings: SoRA) -> None:
        super().__init__(start, weights, scaling)
        self._settings = settings

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The gates, without weight decay."""
        return [{"params": list(self.e.parameters()), "lr": learning_rate, "weight_decay": 0.0}]

    def loss(self, step: Step) -> Tensor | None:
        """λ mean |g|."""
        return self._settings.sparsity * torch.cat(list(self.e)).abs().mean() if self._settings.sparsity else None

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """The proximal step of ``ξ |g|``; a gate that is 0 there may come back by its gradient, as in the paper."""
        for gate in self.e:
            gate.copy_(torch.nn.functional.softshrink(gate, self._settings.threshold))
