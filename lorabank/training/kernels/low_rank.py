r"""The low-rank part of a layer, ``s B A dropout(x)``: the same in every kernel.

With n input rows x, A [r, d_in], B [d_out, r], and a mask that keeps an entry with probability 1 - p:

    forward     h = M(x) A^T                   [n, r]
                y += c h B^T                   in place
    backward    u = g B                        [n, r], from g = dL/dy
                dL/dA = c u^T M(x);  dL/dB = c g^T h;  dL/dx += c M(u A)

M applies the mask. There are two forms of it, and of where c is multiplied:

    on a CPU, in float32 and wider     M(x) = m * x, c = s / (1 - p) on the thin h and u. A mask entry is 16 random
                                       bits, kept from ``round(2^16 p)`` on: a quarter of the cost of a Bernoulli draw,
                                       where that draw costs as much as a product with W.
    on other devices, and in 16 bits   torch's dropout kernels, which draw, mask and scale in one pass over a typed
                                       tensor: M(x) = m * x / (1 - p), c = s as the alpha of the products. A byte mask
                                       times bfloat16 would be a kernel of mixed types, which torch does not vectorise.

p is the multiple of 2^-16 next to the one asked for, in c too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorabank.models.bases.quantised.linear import Weight

_STEPS = 2**16


class LowRank(NamedTuple):
    """How the low-rank part of one call is computed.

    Attributes:
        dtype: Of every product.
        scale: s.
        p: A multiple of 2^-16 below 1 (`rounded`).
        typed: Whether in the second form of this file.
    """

    dtype: torch.dtype
    scale: float
    p: float
    typed: bool

    @classmethod
    def of(cls, x: Tensor, weight: Weight, scale: float, p: float) -> LowRank:
        """Under autocast in its dtype, otherwise in the weight's."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return cls(dtype, scale, rounded(p), kind != "cpu" or dtype.itemsize < 4)

    def add(self, y: Tensor, rows: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor | None, Tensor]:
        """Add the part to ``y [n, d_out]``; gives the mask ``[n, d_in]`` and h for `gradients`."""
        kept, mask = self.drop(rows)
        h = self._thin(kept, A.mT)
        y.addmm_(h, B.mT, alpha=self._alpha)
        return mask, h

    def drop(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """M(x) with a new mask, and the mask; None where nothing is dropped."""
        kept = rows.to(self.dtype)
        if not self.p:
            return kept, None
        if self.typed:
            found: tuple[Tensor, Tensor] = torch.ops.aten.native_dropout(kept, self.p, True)
            return found
        mask = keep_mask(rows, self.p)
        return kept * mask, mask

    def gradients(
        self,
        g: Tensor,
        rows: Tensor,
        A: Tensor,
        B: Tensor,
        mask: Tensor | None,
        h: Tensor | None,
        grad_x: Tensor | None,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of A and B as far as they are wanted; that of x is added to ``grad_x`` where there is one."""
        of_A, of_B = wanted
        grad_A = grad_B = None
        u = self._thin(g, B) if of_A or grad_x is not None else None
        if of_A and u is not None:
            grad_A = self.scaled(u.mT, self.masked(rows.to(self.dtype), mask))
        if of_B and h is not None:
            grad_B = self.scaled(g.mT, h)
        if grad_x is not None and u is not None:
            if mask is None:
                grad_x.addmm_(u, A, alpha=self._alpha)
            elif self.typed:
                grad_x += _typed_mask(u @ A, mask, self.scale / (1 - self.p))
            else:
                grad_x += (u @ A).mul_(mask)
        return grad_A, grad_B

    @property
    def _alpha(self) -> float:
        return self.scale if self.typed else 1.0

    def _thin(self, left: Tensor, right: Tensor) -> Tensor:
        product = left @ right
        return product if self.typed else product.mul_(self.scale / (1 - self.p))

    def scaled(self, left: Tensor, right: Tensor) -> Tensor:
        """A product with what the form multiplies into it: c, or nothing where that is on the thin tensors."""
        if not self.typed:
            return left @ right
        return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=self.scale)

    def masked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """M(x) with a mask that was drawn."""
        if mask is None:
            return x
        return _typed_mask(x, mask, 1 / (1 - self.p)) if self.typed else x * mask


def _typed_mask(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``scale * mask * x``, in x's dtype."""
    masked: Tensor = torch.ops.aten.native_dropout_backward(x, mask, scale)
    return masked


def keep_mask(rows: Tensor, p: float) -> Tensor:
    """A new mask of ``rows [n, d]`` on a CPU: uint8 of its shape, 0 with probability p (to 2^-17), else 1.

    Drawn from torch's generator, each entry for itself.
    """
    words = torch.empty((rows.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    quarters = words.view(torch.int16)[: rows.numel()].view(rows.shape)
    return (quarters >= round(_STEPS * rounded(p)) - _STEPS // 2).view(torch.uint8)


def rounded(p: float) -> float:
    """The nearest multiple of 2^-16 below 1: a p that is all but 1 must not make c infinite."""
    return min(round(_STEPS * p), _STEPS - 1) / _STEPS
