r"""AM-LoRA's selector (arXiv 2409.19611) over whole texts, which starts at a router's answer.

For a text with the mean input x̄ of an adapted module, states k = 1..K and the zero adapter k = 0:

    h_k = sum_j M_kj s_j B_j A_j x̄   (+ (g_j - 1) * (W x̄) where adapter j has a row gain)
    z_k = log p(k | text) + T tanh(u_k . h_k + c_k),   z_0 = c_0
    a = softmax(z_0, ..., z_K),   L = task loss + lambda sum |u|

A dense layer per LoRA with tanh, a softmax over all LoRAs and the zero LoRA, and an L1 norm on the dense layers alone
are the selector's parts as a survey describes it. What differs is where it starts and what it sees: at u = c = 0 the
attention is the posterior p of a router, and the zero adapter is off (c_0 = -6); T lifts the bound of tanh, by which K
states could share the attention alone in the proportion e^2; one token of a review does not say which of two tasks it
belongs to, the mean over the text does. The L1 norm pulls back to the router's answer.

As in `lorabank.models.gates.attention_token` a score costs r multiplications: ``u_k . h_k = (A x̄) S_k``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.attention_token import rank_scores
from lorabank.models.gates.base import Gate, GateMethod, by_module, key_of
from lorabank.models.gates.texts import Read, TextFacts, TextGate


@dataclass(frozen=True)
class Attention(GateMethod):
    """A router's posterior, and what a dense layer per module and state adds to its logarithm."""

    paper = "AM-LoRA, arXiv 2409.19611, with a router's posterior as its start"
    balanced: ClassVar[bool] = True
    guarded: ClassVar[bool] = True
    routed: ClassVar[bool] = True

    learning_rate: float = setting(3e-3, "Learning rate of the gate.", gt=0, le=10)
    rows: int = setting(64, "Maximum number of kept rows of each task.", ge=1)
    lambda_l1: float = setting(1e-4, "Weight of the L1 norm of the dense parameters.", ge=0)
    lift: float = setting(8.0, "Factor T in front of tanh: how far a score can move from the router's.", ge=0)
    zero: float = setting(-6.0, "Initial score of the zero adapter.")

    @property
    def limit(self) -> int:
        """``rows``, so that the steps of a fit do not grow with what the bank keeps."""
        return self.rows

    def build(self, members: StateStack) -> TextSelector:
        """A new selector: the router's posterior."""
        return TextSelector(members, self.lift, self.zero)

    def regulariser(self, gate: Gate) -> Tensor:
        """The weighted L1 norm of the dense parameters."""
        return self.lambda_l1 * torch.stack([u.abs().sum() for u in gate.regularised()]).sum()


class TextSelector(TextGate):
    """The dense parameters of every adapted module: ``u [K, d_out]``, ``c [K]``, ``c_zero [1]``.

    Args:
        members: The states that compete, K of them.
        lift: T.
        zero: c_0 at first.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"ranks", "posterior"})

    def __init__(self, members: StateStack, lift: float, zero: float) -> None:
        super().__init__()
        count = members.count
        self.u = by_module(members, lambda module: torch.zeros(count, members.factors(module).B.shape[0]))
        self.c = by_module(members, lambda module: torch.zeros(count))
        self.c_zero = by_module(members, lambda module: torch.full((1,), zero))
        self._lift = lift

    def weights(self, module: str, members: StateStack, texts: TextFacts) -> Tensor:
        """The attention, summing to 1."""
        assert texts.posterior is not None
        key, ranks = key_of(module), texts.ranks[module]
        scores, gains = rank_scores(module, members, self.u[key], ranks.dtype)
        dense = ranks @ scores[:, 1:] + self.c[key]
        if gains is not None:
            dense = dense + texts.outputs[module] @ gains[:, 1:]
        z = texts.posterior + self._lift * torch.tanh(dense)
        return torch.cat([self.c_zero[key].expand(len(z), 1), z], 1).softmax(-1)

    def regularised(self) -> list[Tensor]:
        """Every u."""
        return list(self.u.values())
