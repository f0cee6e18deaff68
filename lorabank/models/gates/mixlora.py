r"""Conditional Mixture of LoRA (arXiv 2402.15896): for each text the r of a pool's rank-one pairs that suit it.

    delta W(text) = sum_{i in I} s_i b_i a_i^T,   I = the r largest entries of G x̄

The pool of a module are the rows a_i of all stored A, each with its own column b_i (the paper's variant that picks a
pair as one). x̄ is the mean of the module's input over the text, by the base's own pass. The choice is hard; in
training its gradient is that of the softmax of the scores (straight-through), where the official code has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.algebra.stack import StackedFactors
from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import GateMethod, by_module, drawn, key_of
from lorabank.models.gates.texts import Read, TextFacts, TextGate, TextWeights, with_zero


@dataclass(frozen=True)
class MixLoRA(GateMethod):
    """The rank-one pairs of all adapters that a linear selector picks for a text."""

    paper = "Conditional Mixture of LoRA (MixLoRA), arXiv 2402.15896"

    rank: int = setting(8, "Number of pairs that answer a text on a module.", ge=1)

    def build(self, members: StateStack) -> Pairs:
        """A new selector."""
        return Pairs(members, self.rank)


class Pairs(TextGate):
    """``selector [R, d_in]`` by module: a row for each pair, drawn from its adapter's name at first.

    Args:
        members: The states whose adapters are the pool.
        rank: How many pairs answer.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"inputs"})

    def __init__(self, members: StateStack, rank: int) -> None:
        super().__init__()

        def start(module: str) -> Tensor:
            factors = members.factors(module)
            width = factors.A.shape[1]
            names = [(members.stack.names[owner], str(i)) for owner, i in _numbered(factors)]
            return torch.stack([drawn(width, module, *name) for name in names]) / math.sqrt(width)

        self.selector = by_module(members, start)
        self._rank = rank

    def picked(self, module: str, texts: TextFacts) -> Tensor:
        """1 for each pair that answers a text, else 0, ``[n, R]``; with the gradient of the softmax."""
        selector = self.selector[key_of(module)]
        scores: Tensor = texts.inputs[module].to(selector.dtype) @ selector.T
        top = scores.topk(min(self._rank, scores.shape[1]), -1).indices
        shares: Tensor = scores.softmax(-1)
        return torch.zeros_like(scores).scatter(-1, top, 1.0) + shares - shares.detach()

    def mixed(self, module: str, members: StateStack, texts: TextFacts) -> TextWeights:
        """The picked rows; of an adapter's row gain the share of its rows that is picked."""
        factors, picked = members.factors(module), self.picked(module, texts)
        self.note(_shares(picked, module, members))
        of = torch.nn.functional.one_hot(factors.owner, len(members.stack.names)).to(picked)
        return TextWeights(picked * factors.scale.to(picked), picked @ (of / of.sum(0).clamp(min=1)))

    def weights(self, module: str, members: StateStack, texts: TextFacts) -> Tensor:
        """The share of the picked pairs that each state has."""
        return _shares(self.picked(module, texts), module, members)


def _shares(picked: Tensor, module: str, members: StateStack) -> Tensor:
    own = picked @ members.membership(module, picked.dtype)[:, 1:]
    return with_zero(own / own.sum(-1, keepdim=True))


def _numbered(factors: StackedFactors) -> list[tuple[int, int]]:
    """The adapter of each row, and which of that adapter's rows it is."""
    seen: dict[int, int] = {}
    numbered = []
    for owner in factors.owner.tolist():
        numbered.append((owner, seen.get(owner, 0)))
        seen[owner] = seen.get(owner, 0) + 1
    return numbered
