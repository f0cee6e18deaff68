"""A gate: one learned weight for each adapter and module, whatever the token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.core.settings import setting
from lorabank.models.gates.base import Gate, GateMethod, Weigh


@dataclass(frozen=True)
class Constant(GateMethod):
    """A softmax of one score for each adapter and module."""

    decay: float = setting(0.0, "Weight of the squared scores.", ge=0)

    def build(self, stack: AdapterStack) -> Gate:
        """Every adapter, and the zero adapter, with the same weight."""
        return Scores(stack)

    def regulariser(self, gate: Gate) -> Tensor:
        """The weighted sum of the squared scores."""
        return self.decay * torch.stack([score.square().sum() for score in gate.parameters()]).sum()


class Scores(Gate):
    """The scores of every adapted module, ``[K + 1]``, the zero adapter first."""

    def __init__(self, stack: AdapterStack) -> None:
        super().__init__()
        shape = len(stack.names) + 1
        names = [module.replace(".", "/") for module in stack.modules]
        self.scores = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name in names})

    def bound(self, module: str, members: StackedFactors) -> Weigh:
        """One and the same weights for all tokens."""
        scores = self.scores[module.replace(".", "/")]
        return lambda x, h, wx: scores.to(h).softmax(0).expand(len(x), -1)

    def tensors(self) -> dict[str, Tensor]:
        """The scores by module."""
        return {name: score.detach().cpu().clone() for name, score in self.scores.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Gate:
        """Take over stored scores."""
        if self.scores.keys() != tensors.keys():
            raise KeyError(sorted(self.scores.keys() ^ tensors.keys())[0])
        with torch.no_grad():
            for name, score in self.scores.items():
                score.copy_(tensors[name])
        return self
