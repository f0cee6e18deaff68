r"""HydraLoRA (arXiv 2404.19245): one A that all states share, a B for each, and a router per module and token.

    y = W x + sum_k w_k B'_k V^T x,   w = softmax(G x)

Stored adapters have an A each. The shared one here is an orthonormal basis V of the rows of all of them, and the B of
state k is ``B'_k = sum_j M_kj s_j B_j A_j V``: with the whole row space nothing is lost. With a rank of its own, V has
the leading right singular vectors of the stacked A alone, and every state is projected onto them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import GateMethod
from lorabank.models.gates.linear import LinearGate


@dataclass(frozen=True)
class HydraLoRA(GateMethod):
    """A linear router per module and token, over states that share one A."""

    paper = "HydraLoRA, arXiv 2404.19245"

    rank: int = setting(0, "Rank of the shared A; 0 for the whole row space of all A.", ge=0)

    def build(self, members: StateStack) -> Heads:
        """A new router."""
        return Heads(members, self.rank)


class Heads(LinearGate):
    """A linear router over states with one A.

    Args:
        members: The states that compete.
        rank: Of the shared A; 0 for all rows.
    """

    def __init__(self, members: StateStack, rank: int) -> None:
        super().__init__(members)
        self._rank = rank

    def over(self, members: StateStack) -> StateStack:
        """The states with the rows of every A projected onto the shared ones."""
        if not self._rank:
            return members
        modules = {
            name: replace(factors, A=projected(factors.A, self._rank))
            for name, factors in members.stack.modules.items()
        }
        return replace(members, stack=AdapterStack(members.stack.names, modules))


def projected(A: Tensor, rank: int) -> Tensor:
    """The rows ``[R, d_in]`` projected onto their leading right singular vectors; computed in float64."""
    if rank >= min(A.shape):
        return A
    _, _, rows = torch.linalg.svd(A.double(), full_matrices=False)
    shared = rows[:rank]
    low: Tensor = (A.double() @ shared.T) @ shared
    return low.to(A.dtype)
