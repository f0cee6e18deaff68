r"""A linear module with an adapter as one node of the graph.

With n input rows x, frozen W [d_out, d_in] and b, A [r, d_in], B [d_out, r], a mask m of zeros and ones that keeps an
entry with probability 1 - p, and c = s / (1 - p):

    forward     h = c (m * x) A^T              [n, r]
                y = x W^T + b;  y += h B^T     in place
    backward    u = c g B                      [n, r], from g = dL/dy
                dL/dA = u^T (m * x)
                dL/dB = g^T h
                dL/dx = g W;  dL/dx += m * (u A)

This is what autograd makes of ``F.linear(x, W, b) + s * F.linear(F.linear(F.dropout(x, p), A), B)``, in two large and
six thin products. It differs in what it writes and keeps: the adapter's output is added while it is computed and is
never a tensor of its own, the scalings fall on the thin ``[n, r]``, and for the backward pass stay x (which the model
holds anyway), h and one byte for each entry of the mask; ``m * x`` is made again. Gradients that nobody asked for are
not computed.

A mask entry is 16 random bits, kept from ``round(2^16 p)`` on: a quarter of the cost of a Bernoulli draw on a CPU,
where that draw costs as much as a product with W. p is the multiple of 2^-16 next to the one asked for, in c too.

Under autocast every product is in its dtype, as it would be for `torch.nn.functional.linear`. Otherwise W's products
are in W's dtype and the adapter's in that of A and B, each converted once where the two meet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_STEPS = 2**16


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, p: float
) -> Tensor:
    """``x W^T + b + scale * dropout(x) A^T B^T``, differentiable once, in x, A and B.

    Args:
        x: ``[..., d_in]``, in W's dtype unless under autocast.
        weight: W, ``[d_out, d_in]``; gets no gradient, nor does the bias.
        bias: ``[d_out]`` or None.
        A: ``[r, d_in]``.
        B: ``[d_out, r]``, in A's dtype.
        scale: s.
        p: Probability with which an entry of x is dropped before A, below 1, by `keep_mask`; nothing is drawn for 0.

    Returns:
        ``[..., d_out]``, in autocast's dtype or W's.
    """
    # A view made inside the function could not be changed in place, which models do with a linear layer's output.
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _LoraLinear.apply(rows, weight, bias, A, B, scale, rounded(p))  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


def keep_mask(rows: Tensor, p: float) -> Tensor:
    """A new mask of ``rows [n, d]``: uint8 of its shape on its device, 0 with probability p (to 2^-17), else 1.

    Drawn from the generator of the device, each entry for itself.
    """
    if rows.device.type != "cpu":
        return torch.empty_like(rows, dtype=torch.uint8).bernoulli_(1 - rounded(p))
    words = torch.empty((rows.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    quarters = words.view(torch.int16)[: rows.numel()].view(rows.shape)
    return (quarters >= round(_STEPS * rounded(p)) - _STEPS // 2).view(torch.uint8)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, p: float
    ) -> Tensor:
        wide, thin = dtypes(rows.device.type, weight, A)
        ctx.wide, ctx.thin, ctx.c = wide, thin, scale / (1 - p)
        mask = keep_mask(rows, p) if p > 0 else None
        y = F.linear(rows.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
        h = kept(rows, mask, thin) @ A.to(thin).mT
        h *= ctx.c
        add_product(y, h, B.to(thin).mT)
        ctx.save_for_backward(rows, weight, A, B, mask, h if ctx.needs_input_grad[4] else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, A, B, mask, h = ctx.saved_tensors
        of_x, _, _, of_A, of_B, _, _ = ctx.needs_input_grad
        g = gradients[0]
        grad_x = grad_A = grad_B = None
        if of_x or of_A:
            u = g.to(ctx.thin) @ B.to(ctx.thin)
            u *= ctx.c
        if of_A:
            grad_A = (u.mT @ kept(rows, mask, ctx.thin)).to(A.dtype)
        if of_B:
            grad_B = (g.to(ctx.thin).mT @ h).to(B.dtype)
        if of_x:
            grad_x = g.to(ctx.wide) @ weight.to(ctx.wide)
            if mask is None:
                add_product(grad_x, u, A.to(ctx.thin))
            else:
                grad_x += (u @ A.to(ctx.thin)).mul_(mask)
            grad_x = grad_x.to(rows.dtype)
        return grad_x, None, None, grad_A, grad_B, None, None


def dtypes(device: str, weight: Tensor, A: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Of the products with W, and of those with A and B."""
    if torch.is_autocast_enabled(device):
        return (torch.get_autocast_dtype(device),) * 2
    return weight.dtype, A.dtype


def rounded(p: float) -> float:
    """The nearest multiple of 2^-16 below 1: a p that is all but 1 must not make c infinite."""
    return min(round(_STEPS * p), _STEPS - 1) / _STEPS


def kept(rows: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``m * x`` in the adapter's dtype."""
    return rows.to(dtype) if mask is None else rows.to(dtype) * mask


def add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """``to += left right``, rounded once to the dtype of ``to``."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to += left @ right
