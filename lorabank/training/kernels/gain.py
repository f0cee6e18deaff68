r"""A linear module with an adapter that has a row gain, as one node of the graph.

With n input rows x, the untouched W [d_out, d_in] and b, gains t [d_out] of the past and the new adapter together, the
past's factors P_A [R, d_in] and P_B [d_out, R] with their scalings inside, and the low-rank part of
`lorabank.training.kernels.low_rank`:

    forward     z = x W^T                                          [n, d_out], kept
                y = t * z + b;  y += (x P_A^T) P_B^T;  the low-rank part is added in place
    backward    dL/dt = sum over rows of g * z,  from g = dL/dy
                dL/dx = (g * t) W;  += (g P_B) P_A;  the low-rank part's is added in place

Two large products, as without a gain: the past stays beside the weight, because a weight with the past in it would
have to be multiplied by x once more. What is kept beyond plain LoRA's is z. Sums over rows are in float32, and so are
the products with t, which in bfloat16 would be off by up to 2^-9 in all entries of a row alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorabank.models.bases.quantised.linear import Weight, product, pulled
from lorabank.training.kernels.lora import Factors, converted
from lorabank.training.kernels.low_rank import LowRank


def gained_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    gain: Tensor,
    A: Tensor,
    B: Tensor,
    past: Factors | None,
    scale: float,
    p: float,
    shadow: Factors | None = None,
) -> Tensor:
    """``t * (x W^T) + b + x P_A^T P_B^T + scale * dropout(x) A^T B^T``, differentiable once, in x, t, A and B.

    Args:
        x: ``[..., d_in]``, in W's dtype unless under autocast.
        weight: W, ``[d_out, d_in]``, or what makes it; gets no gradient, nor does the bias.
        bias: ``[d_out]`` or None.
        gain: t, ``[d_out]``, float32.
        A: ``[r, d_in]``.
        B: ``[d_out, r]``, in A's dtype.
        past: P_A and P_B, frozen, or None.
        scale: s.
        p: Probability with which an entry of x is dropped before A; see `lorabank.training.kernels.lora`.
        shadow: As there.

    Returns:
        ``[..., d_out]``, in autocast's dtype or W's.
    """
    rows = x.reshape(-1, x.shape[-1])
    low = LowRank.of(x, weight, scale, p)
    factors = converted((A, B), shadow, low.dtype)
    before = past and (past[0].to(low.dtype), past[1].to(low.dtype))
    out: Tensor = _GainedLinear.apply(rows, weight, bias, gain, A, B, factors, before, low)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


class _GainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Weight,
        bias: Tensor | None,
        gain: Tensor,
        A: Tensor,
        B: Tensor,
        factors: Factors,
        past: Factors | None,
        low: LowRank,
    ) -> Tensor:
        ctx.low, ctx.own, ctx.frozen = low, A.dtype, weight
        z = product(rows, weight, None, low.dtype)
        y = (z * gain).to(low.dtype)  # in float32
        if bias is not None:
            y += bias.to(low.dtype)
        if past is not None:
            y.addmm_(rows.to(low.dtype) @ past[0].mT, past[1].mT)
        mask, h = low.add(y, rows, *factors)
        ctx.save_for_backward(rows, gain, *factors, *(past or (None, None)), mask, z, h)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, gain, A, B, past_A, past_B, mask, z, h = ctx.saved_tensors
        of_x, _, _, of_gain, *of_factors, _, _, _ = ctx.needs_input_grad
        g = gradients[0].to(ctx.low.dtype)
        grad_gain = (g.float() * z.float()).sum(0) if of_gain else None
        grad_x = pulled((g * gain).to(ctx.low.dtype), ctx.frozen, ctx.low.dtype) if of_x else None
        if grad_x is not None and past_A is not None:
            grad_x.addmm_(g @ past_B, past_A)
        grads = ctx.low.gradients(g, rows, A, B, mask, h, grad_x, of_factors)
        grad_A, grad_B = (grad if grad is None else grad.to(ctx.own) for grad in grads)
        grad_x = None if grad_x is None else grad_x.to(rows.dtype)
        return grad_x, None, None, grad_gain, grad_A, grad_B, None, None, None
