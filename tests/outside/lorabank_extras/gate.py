"""A gate: one learned weight for each member and module, whatever the token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import Gate, GateMethod, TokenGate, Weigh, by_module, key_of


@dataclass(frozen=True)
class Constant(GateMethod):
    """A softmax of one score for each member and module."""

    decay: float = setting(0.0, "Weight of the squared scores.", ge=0)

    def build(self, members: StateStack) -> Gate:
        """Every member, and the zero adapter, with the same weight."""
        return Scores(members)

    def regulariser(self, gate: Gate) -> Tensor:
        """The weighted sum of the squared scores."""
        return self.decay * torch.stack([score.square().sum() for score in gate.parameters()]).sum()


class Scores(TokenGate):
    """The scores of every adapted module, ``[K + 1]``, the zero adapter first; stored as ``scores:<module>``."""

    def __init__(self, members: StateStack) -> None:
        super().__init__()
        self.scores = by_module(members, lambda module: torch.zeros(members.count + 1))

    def bound(self, module: str, members: StateStack) -> Weigh:
        """One and the same weights for all tokens."""
        scores = self.scores[key_of(module)]
        return lambda x, h, wx: scores.to(h).softmax(0).expand(len(x), -1)
