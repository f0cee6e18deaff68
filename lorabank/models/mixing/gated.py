r"""Adapters under a gate: ``y = W x + b + sum_{k >= 1} a_k h_k`` with one a for every token.

Over stacked factors ``A [R, d_in]``, ``B [d_out, R]`` all are products of matrices:

    h = x A^T   [tokens, R],   a from the gate   [tokens, K + 1]
    y = W x + b + (h * (a E)) B^T   E [K + 1, R]: s_k in adapter k's columns of row k, else 0; row 0 is 0
        + (a G) * (W x)             G [K + 1, d_out]: row k is g_k - 1, row 0 is 0; where adapters have row gains
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lorabank.algebra.stack import StackedFactors
from lorabank.models.gates.base import Gate, membership


class Gated:
    """A module's adapters under a gate, entered once and asked in every pass.

    Args:
        gate: Over the members; where its parameters need no gradient they must not change while this is used.
        module: The module's name.
        members: The adapters that compete.
        bias: The module's bias ``[d_out]``, which no row gain multiplies.
        count: How many adapters compete, K.
    """

    def __init__(self, gate: Gate, module: str, members: StackedFactors, bias: Tensor | None, count: int) -> None:
        self._gate, self._members, self._bias = gate, members, bias
        self._expand = membership(members, count, members.A.dtype).T * members.scale
        self._weigh = gate.bound(module, members)

    def add(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the weighted adapters.

        Args:
            out: ``W x + b [..., d_out]``, changed in place.
            x: ``[..., d_in]``.

        Returns:
            ``out``.
        """
        members = self._members
        rows = x.reshape(-1, x.shape[-1])
        h, flat, wx = F.linear(rows, members.A), out.view(-1, out.shape[-1]), None
        if members.gain is not None:
            wx = flat.clone() if self._bias is None else flat - self._bias
        weights = self._weigh(rows, h, wx)
        self._gate.note(weights)
        flat.addmm_(h * (weights @ self._expand), members.B.T)
        if wx is not None and members.gain is not None:
            flat.addcmul_(weights[:, 1:] @ (members.gain - 1).to(wx.dtype), wx)
        return out
