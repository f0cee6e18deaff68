r"""X-LoRA (arXiv 2402.07148) over whole texts: the bare base's last hidden state says how much of each state answers.

    w = softmax((C h̄ + c) / tau)      h̄: mean of the last hidden state over the text, of the base alone

X-LoRA makes a *scaling pass* without adapters and weighs every token by the classifier's answer to its last hidden
state. Here the classifier reads the text's mean, so that the weights are one vector that generation keeps. It is one
linear layer, which is what the official code builds at its default depth of 1. At first all states weigh the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import GateMethod, key_of, unplaced
from lorabank.models.gates.texts import Read, TextFacts, TextGate, with_zero


@dataclass(frozen=True)
class XLora(GateMethod):
    """A linear classifier of the base's last hidden state."""

    paper = "X-LoRA, arXiv 2402.07148"

    temperature: float = setting(1.0, "Divides the scores.", gt=0)
    layerwise: bool = setting(False, "Give every module weights of its own.")

    def build(self, members: StateStack) -> Classifier:
        """A new classifier."""
        return Classifier(members, self.temperature, layerwise=self.layerwise)


class Classifier(TextGate):
    """``dense [K, width]`` and ``bias [K]``, by module where layerwise, else under the name ``all``.

    Args:
        members: The states that compete, K of them.
        temperature: Divides the scores.
        layerwise: Whether every module has weights of its own.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"hidden"})

    def __init__(self, members: StateStack, temperature: float, *, layerwise: bool) -> None:
        super().__init__()
        self._count, self._temperature = members.count, temperature
        names = [key_of(module) for module in members.stack.modules] if layerwise else ["all"]
        zeros = torch.zeros(members.count, device=members.matrix.device)
        self.dense = nn.ParameterDict({name: unplaced(members) for name in names})
        self.bias = nn.ParameterDict({name: nn.Parameter(zeros.clone()) for name in names})

    def place(self, texts: TextFacts, of: Tensor) -> None:
        """Zeros of the width that the base has."""
        assert texts.hidden is not None
        for dense in self.dense.values():
            dense.materialize((self._count, texts.hidden.shape[1]))
            dense.zero_()

    def weights(self, module: str, members: StateStack, texts: TextFacts) -> Tensor:
        """The classifier's answer, nothing for the zero adapter."""
        assert texts.hidden is not None
        name = key_of(module) if key_of(module) in self.dense else "all"
        dense, bias = self.dense[name], self.bias[name]
        scores = texts.hidden.to(dense.dtype) @ dense.T + bias
        return with_zero((scores / self._temperature).softmax(-1))
