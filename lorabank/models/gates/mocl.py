r"""MoCL (arXiv 2404.00790): each state has a learned vector, and answers a text by the cosine between the two.

    w = softmax(cos(h̄, v_k) / tau)      h̄: mean of the bare base's last hidden state over the text

v_k starts as the mean of the kept texts of the state's tasks. The paper takes the cosines themselves as weights; those
of texts of one model are all near 1, so that every state would answer at full strength, and the softmax of ours makes
of them shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import GateMethod, unplaced
from lorabank.models.gates.texts import Read, TextFacts, TextGate, means_by_state, with_zero


@dataclass(frozen=True)
class MoCL(GateMethod):
    """The cosine of a text with a learned vector of each state."""

    paper = "MoCL, arXiv 2404.00790"

    temperature: float = setting(0.05, "Divides the cosines.", gt=0)

    def build(self, members: StateStack) -> TaskVectors:
        """A vector for each state, not placed yet."""
        return TaskVectors(members, self.temperature)


class TaskVectors(TextGate):
    """``vectors [K, width]``.

    Args:
        members: The states that compete, K of them.
        temperature: Divides the cosines.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"hidden"})

    def __init__(self, members: StateStack, temperature: float) -> None:
        super().__init__()
        self.vectors = unplaced(members)
        self._count, self._temperature = members.count, temperature

    def place(self, texts: TextFacts, of: Tensor) -> None:
        """The mean of each state's kept texts."""
        assert texts.hidden is not None
        means = means_by_state(texts.hidden, of, self._count)
        self.vectors.materialize(means.shape)
        self.vectors.copy_(means)

    def weights(self, module: str, members: StateStack, texts: TextFacts) -> Tensor:
        """The same for every module, nothing for the zero adapter."""
        assert texts.hidden is not None
        hidden = F.normalize(texts.hidden.to(self.vectors.dtype), dim=-1)
        cosines = hidden @ F.normalize(self.vectors, dim=-1).T
        return with_zero((cosines / self._temperature).softmax(-1))
