"""Weights that are the same for every token: one for each adapter, module by module. They merge exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.models.gates.base import Gate, Weigh, copy_into


class StaticWeights(Gate):
    """A parameter ``[K]`` for every module; the zero adapter has no weight.

    Args:
        stack: The adapters.
        start: Initial value of every weight.
    """

    def __init__(self, stack: AdapterStack, start: float) -> None:
        super().__init__()
        self._parameters_by_module = nn.ParameterDict(
            {
                module.replace(".", "/"): nn.Parameter(torch.full((len(stack.names),), start, device=factors.A.device))
                for module, factors in stack.modules.items()
            }
        )

    def weights(self) -> dict[str, Tensor]:
        """Module name to ``[K]``."""
        return {name.replace("/", "."): value for name, value in self._parameters_by_module.items()}

    def bound(self, module: str, members: StackedFactors) -> Weigh:
        """The weights of one module, with a 0 for the zero adapter."""
        own = self._parameters_by_module[module.replace(".", "/")]
        return lambda x, h, wx: torch.cat([own.new_zeros(1), own]).to(h.dtype).expand(len(x), -1)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by module."""
        return {name: value.detach().cpu().clone() for name, value in self.weights().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> StaticWeights:
        """Take over stored weights."""
        copy_into(self.weights(), tensors)
        return self
