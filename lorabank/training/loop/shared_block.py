"""Parameters of one shape side by side in one block of memory.

The block is ``[M, ...]`` and the m-th parameter's data is its m-th part. What an optimizer writes into a parameter
stands in the block, so a batched product over all M of them needs no copy. Going backward, the gradient of the block
is split among the parameters, added to what they have.

The parameters stay the parameters: the optimizer, checkpoints and the exported adapter see M tensors as before. To
clip and step the blocks themselves would save less than half a percent of a training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Arena:
    """Puts parameters into one block.

    Args:
        parameters: One or more of one shape and dtype, on one device; their data moves into the block.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = tuple(parameters)
        self._adopt()

    def joined(self) -> Tensor:
        """The block ``[M, ...]`` with its values as they are now, part of the graph of every parameter."""
        if [parameter.data_ptr() for parameter in self._parameters] != self._places:
            self._adopt()  # someone gave a parameter other data, on another device perhaps
        block: Tensor = _Joined.apply(self._block, *self._parameters)  # type: ignore[no-untyped-call]
        return block

    def _adopt(self) -> None:
        self._block = torch.stack([parameter.detach() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, self._block, strict=True):
            parameter.data = part
        self._places = [parameter.data_ptr() for parameter in self._parameters]


class _Joined(torch.autograd.Function):
    """``torch.stack`` of parameters that lie side by side already."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, *parameters: Tensor) -> Tensor:
        return block.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradients[0].unbind()
