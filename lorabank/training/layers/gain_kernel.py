r"""A linear module with an adapter that has a row gain, as one node of the graph.

With n input rows x, the untouched W [d_out, d_in] and b, gains t [d_out] of the past and the new adapter together, the
past's factors P_A [R, d_in] and P_B [d_out, R] with their scalings inside, A, B, mask m and c = s / (1 - p) as in
`lorabank.training.layers.kernel`:

    forward     z = x W^T                                          [n, d_out], kept
                y = t * z + b;  y += (x P_A^T) P_B^T;  y += c (m * x) A^T B^T
    backward    dL/dt = sum over rows of g * z,  from g = dL/dy
                dL/dA, dL/dB as without a gain
                dL/dx = (g * t) W;  += (g P_B) P_A;  += m * (c g B) A

Two large products, as without a gain: the past stays beside the weight, because a weight with the past in it would
have to be multiplied by x once more. What is kept beyond plain LoRA's is z. Sums over rows are in float32, and so are
the products with t, which in bfloat16 would be off by up to 2^-9 in all entries of a row alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorabank.training.layers.kernel import add_product, dtypes, keep_mask, kept, rounded


def gained_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor,
    A: Tensor,
    B: Tensor,
    past: tuple[Tensor, Tensor] | None,
    scale: float,
    p: float,
) -> Tensor:
    """``t * (x W^T) + b + x P_A^T P_B^T + scale * dropout(x) A^T B^T``, differentiable once, in x, t, A and B.

    Args:
        x: ``[..., d_in]``, in W's dtype unless under autocast.
        weight: W, ``[d_out, d_in]``; gets no gradient, nor does the bias.
        bias: ``[d_out]`` or None.
        gain: t, ``[d_out]``, float32.
        A: ``[r, d_in]``.
        B: ``[d_out, r]``, in A's dtype.
        past: P_A and P_B in A's dtype, frozen, or None.
        scale: s.
        p: Probability with which an entry of x is dropped before A; see `lorabank.training.layers.kernel`.

    Returns:
        ``[..., d_out]``, in autocast's dtype or W's.
    """
    rows = x.reshape(-1, x.shape[-1])
    p_A, p_B = past or (None, None)
    out: Tensor = _GainedLinear.apply(rows, weight, bias, gain, A, B, p_A, p_B, scale, rounded(p))  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


class _GainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gain: Tensor,
        A: Tensor,
        B: Tensor,
        past_A: Tensor | None,
        past_B: Tensor | None,
        scale: float,
        p: float,
    ) -> Tensor:
        wide, thin = dtypes(rows.device.type, weight, A)
        ctx.wide, ctx.thin, ctx.c = wide, thin, scale / (1 - p)
        mask = keep_mask(rows, p) if p > 0 else None
        z = F.linear(rows.to(wide), weight.to(wide))
        y = (z * gain).to(wide)  # in float32
        if bias is not None:
            y += bias.to(wide)
        if past_A is not None and past_B is not None:
            add_product(y, rows.to(thin) @ past_A.to(thin).mT, past_B.to(thin).mT)
        h = kept(rows, mask, thin) @ A.to(thin).mT
        h *= ctx.c
        add_product(y, h, B.to(thin).mT)
        ctx.save_for_backward(rows, weight, gain, A, B, past_A, past_B, mask, z, h)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, gain, A, B, past_A, past_B, mask, z, h = ctx.saved_tensors
        of_x, _, _, of_gain, of_A, of_B, *_ = ctx.needs_input_grad
        g = gradients[0]
        grad_x = grad_A = grad_B = grad_gain = None
        if of_gain:
            grad_gain = (g.float() * z.float()).sum(0)
        if of_x or of_A:
            u = g.to(ctx.thin) @ B.to(ctx.thin)
            u *= ctx.c
        if of_A:
            grad_A = (u.mT @ kept(rows, mask, ctx.thin)).to(A.dtype)
        if of_B:
            grad_B = (g.to(ctx.thin).mT @ h).to(B.dtype)
        if of_x:
            grad_x = (g * gain).to(ctx.wide) @ weight.to(ctx.wide)
            if past_A is not None:
                add_product(grad_x, g.to(ctx.thin) @ past_B.to(ctx.thin), past_A.to(ctx.thin))
            if mask is None:
                add_product(grad_x, u, A.to(ctx.thin))
            else:
                grad_x += (u @ A.to(ctx.thin)).mul_(mask)
            grad_x = grad_x.to(rows.dtype)
        return grad_x, None, None, grad_gain, grad_A, grad_B, None, None, None, None
