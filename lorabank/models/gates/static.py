"""Weights that are the same for every token: one for each member, module by module. They merge exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.models.gates.base import TokenGate, Weigh, by_module, copy_into, key_of, module_of


class StaticWeights(TokenGate):
    """A parameter ``[K]`` for every module; the zero adapter has no weight.

    Args:
        members: The states.
        start: Initial value of every weight.
    """

    def __init__(self, members: StateStack, start: float) -> None:
        super().__init__()
        self._parameters_by_module = by_module(members, lambda module: torch.full((members.count,), start))

    def weights(self) -> dict[str, Tensor]:
        """Module name to ``[K]``."""
        return {module_of(key): value for key, value in self._parameters_by_module.items()}

    def bound(self, module: str, members: StateStack) -> Weigh:
        """The weights of one module, with a 0 for the zero adapter."""
        own = self._parameters_by_module[key_of(module)]
        return lambda x, h, wx: torch.cat([own.new_zeros(1), own]).to(h.dtype).expand(len(x), -1)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by module."""
        return {name: value.detach().cpu().clone() for name, value in self.weights().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over stored weights."""
        copy_into(self.weights(), tensors)
        return self
