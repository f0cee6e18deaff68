"""A fused matrix as the linear layers that it consists of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorabank.models.bases.fused import Rows
from lorabank.models.bases.kinds.base import Parts


class Split(Parts):
    """A fused matrix as the linear layers that it consists of, each a submodule under its letter.

    Args:
        base: The fused module.
        blocks: Letter to its rows; together they are all rows.
        matrix: The module's ``W [d_out, d_in]``.
        bias: ``[d_out]`` or None.
    """

    def __init__(self, base: nn.Module, blocks: dict[str, Rows], matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__(base)
        order = []
        for letter, rows in blocks.items():
            part = nn.Linear(1, 1, bias=False, device="meta")
            part.in_features, part.out_features = matrix.shape[1], len(matrix[rows])
            part.register_parameter("weight", nn.Parameter(matrix[rows].detach(), requires_grad=False))
            own = None if bias is None else nn.Parameter(bias[rows].detach(), requires_grad=False)
            part.register_parameter("bias", own)
            self.add_module(letter, part)
            order.append(torch.arange(matrix.shape[0])[rows])
        self._letters = tuple(blocks)
        back = torch.cat(order).argsort()
        in_order = torch.equal(back, torch.arange(len(back)))
        self._back = None if in_order else back.to(matrix.device)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``, the rows of all blocks in the order of the fused matrix."""
        out = torch.cat([self.get_submodule(letter)(x) for letter in self._letters], -1)
        return out if self._back is None else out[..., self._back]
