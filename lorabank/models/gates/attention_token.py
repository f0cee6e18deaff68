r"""The selector of AM-LoRA (arXiv 2409.19611): per module and token, how much of each adapter answers.

For an adapted module with input x, adapters k = 1..K and the zero adapter k = 0:

    h_k = s_k B_k A_k x,   z_k = tanh(u_k . h_k + c_k),   z_0 = tanh(c_0)   (h_0 = 0)
    a = softmax(z_0, ..., z_K),   y = W x + sum_{k >= 1} a_k h_k

``u_k . s_k B_k A_k x = (s_k B_k^T u_k) . (A_k x)``, so a score costs r multiplications and not d_out. Over stacked
factors ``A [R, d_in]``, ``B [d_out, R]`` all are products of matrices; nothing of size [tokens, K, d_out] is built:

    h = x A^T   [tokens, R]
    a = softmax(tanh(h S + c))    S [R, K + 1]: s_k B_k^T u_k in adapter k's rows of column k, else 0; column 0 is 0
    y = W x + (h * (a E)) B^T     E [K + 1, R]: s_k in adapter k's columns of row k, else 0; row 0 is 0

Where adapters have row gains, h_k is ``(g_k - 1) * (W x) + s_k B_k A_k x``, and two more products do it:

    a = softmax(tanh(h S + (W x) U + c))    U [d_out, K + 1]: column k is u_k * (g_k - 1), column 0 is 0
    y += (a G) * (W x)                      G [K + 1, d_out]: row k is g_k - 1, row 0 is 0

A member that is a sum of several adapters has s_j B_j^T u_k in the rows of each of them, and its row gain is the sum
of theirs. S, U and c are made anew for every pass while the selector learns, and once for a state when it does not
(`RankSpace`). The paper's text gives no equations; this follows a survey's account of it, word by word. Weights of
whole texts that start at a router's answer are in `lorabank.models.gates.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import Gate, GateMethod, TokenGate, Weigh, by_module, key_of


@dataclass(frozen=True)
class RankSpace:
    """One module's scores as a product.

    Attributes:
        scores: S above, ``[R, K + 1]``.
        offsets: c above, ``[K + 1]``.
        gains: U above, ``[d_out, K + 1]``; None where no adapter has a row gain.
    """

    scores: Tensor
    offsets: Tensor
    gains: Tensor | None = None


@dataclass(frozen=True)
class AttentionToken(GateMethod):
    """A dense layer per module and adapter, and a softmax over their scores, token by token."""

    paper = "AM-LoRA, arXiv 2409.19611"

    lambda_l1: float = setting(1e-3, "Weight of the L1 norm of the dense parameters.", ge=0)

    def build(self, members: StateStack) -> Selector:
        """A new selector."""
        return Selector(members)

    def regulariser(self, gate: Gate) -> Tensor:
        """The weighted L1 norm of the dense parameters."""
        assert isinstance(gate, Selector)
        return self.lambda_l1 * gate.l1()


class Selector(TokenGate):
    """The dense parameters of every adapted module.

    Parameters by module name (dots as ``/``): ``u [K, d_out]``, ``c [K]``, ``c_zero [1]``, all zero at first, which
    gives every member and the zero adapter the same attention. They are stored as ``u:<module>`` and so on.

    Args:
        members: The states that compete, K of them.
    """

    def __init__(self, members: StateStack) -> None:
        super().__init__()
        count = members.count
        self.u = by_module(members, lambda module: torch.zeros(count, members.factors(module).B.shape[0]))
        self.c = by_module(members, lambda module: torch.zeros(count))
        self.c_zero = by_module(members, lambda module: torch.zeros(1))

    def attention(self, module: str, members: StateStack, h: Tensor, wx: Tensor | None = None) -> Tensor:
        """Attention over the members, the zero adapter included.

        Args:
            module: Name of the adapted module.
            members: The states that compete.
            h: ``A_all x``, ``[..., R]``.
            wx: ``W x [..., d_out]``, looked at only where an adapter has a row gain.

        Returns:
            ``[..., K + 1]``, the zero adapter first, summing to 1.
        """
        return self.attend(self.rank_space(module, members), h, wx)

    def rank_space(self, module: str, members: StateStack) -> RankSpace:
        """The parameters of a module as matrices in the factors' dtype, with their graph."""
        key, dtype = key_of(module), members.factors(module).A.dtype
        scores, gains = rank_scores(module, members, self.u[key], dtype)
        return RankSpace(scores, torch.cat([self.c_zero[key], self.c[key]]).to(dtype), gains)

    def attend(self, space: RankSpace, h: Tensor, wx: Tensor | None = None) -> Tensor:
        """``h [..., R]`` and ``W x [..., d_out]`` to the attention ``[..., K + 1]``, as `attention` gives it."""
        rows = torch.addmm(space.offsets, h.reshape(-1, h.shape[-1]), space.scores)
        if space.gains is not None:
            assert wx is not None
            rows = rows + wx.reshape(-1, wx.shape[-1]) @ space.gains
        scores = rows.view(*h.shape[:-1], rows.shape[-1])
        return torch.tanh(scores).softmax(-1)

    def bound(self, module: str, members: StateStack) -> Weigh:
        """The attention of one module; S, U and c are made once where they do not learn."""
        space = None if self.learns else self.rank_space(module, members)
        return lambda x, h, wx: self.attend(space or self.rank_space(module, members), h, wx)

    def regularised(self) -> list[Tensor]:
        """Every u."""
        return list(self.u.values())

    def l1(self) -> Tensor:
        """``sum |u|`` over all modules; an L1 on the attention itself would be constant, since it sums to 1."""
        return torch.stack([u.abs().sum() for u in self.u.values()]).sum()


def rank_scores(module: str, members: StateStack, u: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """S ``[R, K + 1]`` and U ``[d_out, K + 1]`` of the equations above from ``u [K, d_out]``, with their graph.

    U is None where no adapter has a row gain.
    """
    factors, own = members.factors(module), members.membership(module, dtype)
    row, k = own[:, 1:].nonzero(as_tuple=True)
    dense = factors.scale[row].to(dtype) * (factors.B[:, row].to(dtype) * u.T[:, k].to(dtype)).sum(0)
    scores = torch.zeros_like(own).index_put((row, k + 1), dense * own[row, k + 1])
    gain = members.gains(module)
    return scores, None if gain is None else F.pad((u * gain).T.to(dtype), (1, 0))
