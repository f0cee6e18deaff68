r"""LoRA-MoE over stored adapters: a linear router per module and token, dense or top-k, with a balance loss.

    p = softmax(G x),   w = p or its top k renormalised,   y = W x + sum_k w_k h_k
    L = task loss + lambda K sum_k mean(w_k) mean(p_k)      means over the tokens of a step, the first a constant

``top_k=0`` is the dense mixture of LoRAMoE and MoLoRA; ``top_k=2`` weighs as MixLoRA of TUDB (arXiv 2404.15159) does,
there in the feed-forward layers alone. The loss that evens out the use of experts is Switch's (arXiv 2101.03961, eq.
4) with the weights in place of counts; where all states are used alike it is lambda.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import Gate, GateMethod
from lorabank.models.gates.linear import LinearGate


@dataclass(frozen=True)
class MoE(GateMethod):
    """A linear router per module and token, over all states or the likeliest few."""

    paper = "MixLoRA, arXiv 2404.15159 (top-2); MoLoRA, arXiv 2309.05444 (dense)"

    top_k: int = setting(0, "How many states answer a token; 0 for all.", ge=0)
    balance: float = setting(0.01, "Weight of the loss that evens out the use of the states.", ge=0)

    def build(self, members: StateStack) -> Experts:
        """A new router."""
        return Experts(members, self.top_k)

    def regulariser(self, gate: Gate) -> Tensor:
        """The weighted balance loss of the last pass, a mean over the modules."""
        assert isinstance(gate, Experts)
        return self.balance * gate.imbalance()


class Experts(LinearGate):
    """A linear router that knows how evenly its last pass used the states."""

    def __init__(self, members: StateStack, top_k: int) -> None:
        super().__init__(members, top_k)
        self._passed: list[Tensor] = []

    def heed(self, shares: Tensor, weights: Tensor) -> None:
        """Keep the imbalance of a pass that learns."""
        if shares.requires_grad:
            used = weights.detach().mean(0)
            self._passed.append(shares.shape[-1] * (used * shares.mean(0)).sum())

    def imbalance(self) -> Tensor:
        """The mean imbalance of the passes since it was last asked for; 0 without any."""
        passed, self._passed = self._passed, []
        return torch.stack(passed).mean() if passed else torch.zeros(())
