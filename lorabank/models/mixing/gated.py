r"""States under a gate that weighs every token: ``y = W x + b + sum_{k >= 1} a_k h_k`` with one a for every token.

Over stacked factors ``A [R, d_in]``, ``B [d_out, R]`` all are products of matrices:

    h = x A^T   [tokens, R],   a from the gate   [tokens, K + 1]
    y = W x + b + (h * (a E)) B^T   E [K + 1, R]: s_j in state k's rows, of adapters j, of row k, else 0; row 0 is 0
        + (a G) * (W x)             G [K + 1, d_out]: row k is sum_j (g_j - 1), row 0 is 0; where there are row gains
"""

from __future__ import annotations

from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.models.gates.base import TokenGate
from lorabank.models.mixing.reading import LINEAR, Reads


class Gated:
    """A module's states under a gate, entered once and asked in every pass.

    Args:
        gate: Over the members; where its parameters need no gradient they must not change while this is used.
        module: The module's name.
        members: The states that compete.
        reads: How the module reads its input.
    """

    def __init__(self, gate: TokenGate, module: str, members: StateStack, reads: Reads = LINEAR) -> None:
        self._gate, self._factors, self._reads = gate, members.factors(module), reads
        self._gains = members.gains(module)
        self._expand = members.membership(module, self._factors.A.dtype).T * self._factors.scale
        self._weigh = gate.bound(module, members)

    def add(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the weighted adapters.

        Args:
            out: ``W x + b [..., d_out]``, changed in place.
            x: ``[..., d_in]``.

        Returns:
            ``out``.
        """
        factors, reads = self._factors, self._reads
        rows = x.reshape(-1, x.shape[-1])
        h, flat, wx = reads.down(rows, factors.A), out.view(-1, out.shape[-1]), None
        if self._gains is not None:
            wx = flat.clone() if reads.bias is None else flat - reads.bias
        weights = self._weigh(reads.inputs(rows), h, wx)
        self._gate.note(weights)
        flat.addmm_(h * (weights @ self._expand), factors.B.T)
        if wx is not None and self._gains is not None:
            flat.addcmul_(weights[:, 1:] @ self._gains.to(wx.dtype), wx)
        return out
