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

S, U and c are made anew for every pass while the selector learns, and once for a state when it does not (`RankSpace`).
The paper's text gives no equations; this follows a survey's account of it (docs/methods/gates/attention.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.core.settings import setting
from lorabank.models.gates.base import Gate, GateMethod, Weigh, copy_into, membership


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
class Attention(GateMethod):
    """A dense layer per module and adapter, and a softmax over their scores."""

    paper = "AM-LoRA, arXiv 2409.19611"

    lambda_l1: float = setting(1e-3, "Weight of the L1 norm of the dense parameters.", ge=0)

    def build(self, stack: AdapterStack) -> Selector:
        """A new selector."""
        return Selector(stack)

    def regulariser(self, gate: Gate) -> Tensor:
        """The weighted L1 norm of the dense parameters."""
        assert isinstance(gate, Selector)
        return self.lambda_l1 * gate.l1()


class Selector(Gate):
    """The dense parameters of every adapted module.

    Parameters by module name (dots as ``/`` in the state): ``u [K, d_out]``, ``c [K]``, ``c_zero [1]``, all zero at
    first, which gives every adapter and the zero adapter the same attention.

    Args:
        stack: The adapters that compete, K of them.
    """

    def __init__(self, stack: AdapterStack) -> None:
        super().__init__()
        count = len(stack.names)
        self.u, self.c, self.c_zero = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for module, factors in stack.modules.items():
            key = module.replace(".", "/")
            device = factors.A.device
            self.u[key] = nn.Parameter(torch.zeros(count, factors.B.shape[0], device=device))
            self.c[key] = nn.Parameter(torch.zeros(count, device=device))
            self.c_zero[key] = nn.Parameter(torch.zeros(1, device=device))

    def attention(self, module: str, factors: StackedFactors, h: Tensor, wx: Tensor | None = None) -> Tensor:
        """Attention over the adapters, the zero adapter included.

        Args:
            module: Name of the adapted module.
            factors: Its stacked factors.
            h: ``A_all x``, ``[..., R]``.
            wx: ``W x [..., d_out]``, looked at only where an adapter has a row gain.

        Returns:
            ``[..., K + 1]``, the zero adapter first, summing to 1.
        """
        return self.attend(self.rank_space(module, factors), h, wx)

    def rank_space(self, module: str, factors: StackedFactors) -> RankSpace:
        """The parameters of a module as matrices in the factors' dtype, with their graph."""
        key, dtype = module.replace(".", "/"), factors.A.dtype
        rows = factors.scale * (factors.B * self.u[key].T[:, factors.owner].to(dtype)).sum(0)
        scores = rows.unsqueeze(1) * membership(factors, self.c[key].shape[0], rows.dtype)
        gains = None if factors.gain is None else F.pad((self.u[key] * (factors.gain - 1)).T.to(dtype), (1, 0))
        return RankSpace(scores, torch.cat([self.c_zero[key], self.c[key]]).to(dtype), gains)

    def attend(self, space: RankSpace, h: Tensor, wx: Tensor | None = None) -> Tensor:
        """``h [..., R]`` and ``W x [..., d_out]`` to the attention ``[..., K + 1]``, as `attention` gives it."""
        rows = torch.addmm(space.offsets, h.reshape(-1, h.shape[-1]), space.scores)
        if space.gains is not None:
            assert wx is not None
            rows = rows + wx.reshape(-1, wx.shape[-1]) @ space.gains
        scores = rows.view(*h.shape[:-1], rows.shape[-1])
        return torch.tanh(scores).softmax(-1)

    def bound(self, module: str, members: StackedFactors) -> Weigh:
        """The attention of one module; S, U and c are made once where they do not learn."""
        learns = any(parameter.requires_grad for parameter in self.parameters())
        space = None if learns else self.rank_space(module, members)
        return lambda x, h, wx: self.attend(space or self.rank_space(module, members), h, wx)

    def regularised(self) -> list[Tensor]:
        """Every u."""
        return list(self.u.values())

    def l1(self) -> Tensor:
        """``sum |u|`` over all modules; an L1 on the attention itself would be constant, since it sums to 1."""
        return torch.stack([u.abs().sum() for u in self.u.values()]).sum()

    def tensors(self) -> dict[str, Tensor]:
        """Plain tensors to store: ``u:<module>``, ``c:<module>``, ``c_zero:<module>``."""
        return {name: value.detach().cpu().contiguous() for name, value in self._named().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Selector:
        """Take over stored tensors; the keys and shapes must be exactly those of `tensors`."""
        copy_into(self._named(), tensors)
        return self

    def _named(self) -> dict[str, Tensor]:
        return {
            f"{kind}:{key.replace('/', '.')}": value
            for kind, group in (("u", self.u), ("c", self.c), ("c_zero", self.c_zero))
            for key, value in group.items()
        }
