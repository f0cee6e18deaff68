"""The factors in the dtype of the products: converted once for each optimizer step, not in every pass of every layer.

The optimizer moves A and B in float32, where small steps are not lost; a base in bfloat16, or under autocast,
multiplies in bfloat16. All copies are written by one call, which on a GPU is a few kernels for the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lorabank.training.layers.layer import LoraLinear


class Shadows:
    """The copies of the layers' factors; call it when A or B have changed.

    Args:
        layers: Trainable layers. Those of other kernels (``one_weight`` is False) take the factors themselves.
        dtype: Of the products; layers whose factors have it need no copies.
    """

    def __init__(self, layers: Iterable[LoraLinear], dtype: torch.dtype) -> None:
        layers = [layer for layer in layers if layer.one_weight and layer.lora_A.dtype != dtype]
        self._factors: list[Tensor] = [factor for layer in layers for factor in (layer.lora_A, layer.lora_B)]
        self._copies = [torch.empty_like(factor, dtype=dtype, requires_grad=False) for factor in self._factors]
        for k, layer in enumerate(layers):
            layer.shadow = self._copies[2 * k], self._copies[2 * k + 1]
        self()

    @torch.no_grad()
    def __call__(self) -> None:
        """Make them again."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._factors)
