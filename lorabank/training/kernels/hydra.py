r"""A linear module with a HydraLoRA adapter as one node of the graph.

With n input rows x, frozen W [d_out, d_in] and b, one A [r, d_in], N matrices B side by side [d_out, N r], a router
R [N, d_in], and a mask M as in `lorabank.training.kernels.low_rank`, where c is s or s / (1 - p):

    forward     w = softmax(x R^T) [n, N];  h = M(x) A^T [n, r];  z = c w (x) h [n, N r], row by row
                y = x W^T + b + z B^T,  the last in place
    backward    u = g B [n, N r], from g = dL/dy;  dL/dB = g^T z
                a = c sum_i w_i u_i [n, r];  dL/dA = a^T M(x)
                v_i = c u_i . h;  l = w (v - w . v) [n, N];  dL/dR = l^T x
                dL/dx = g W + M(a A) + l R

Where nothing is dropped, A and R stand in one matrix, so that x is read once for both in each direction. The softmax
and its gradient are in float32 at least, as in the authors' code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorabank.models.bases.quantised.linear import Weight, product, pulled
from lorabank.training.kernels.low_rank import LowRank


def hydra_linear(
    x: Tensor, weight: Weight, bias: Tensor | None, A: Tensor, B: Tensor, router: Tensor, scale: float, p: float
) -> Tensor:
    """``x W^T + b + scale * sum_i w_i B_i A dropout(x)``, differentiable once, in x, A, B and the router.

    Args:
        x: ``[..., d_in]``, in W's dtype unless under autocast.
        weight: W, ``[d_out, d_in]``, or what makes it; gets no gradient, nor does the bias.
        bias: ``[d_out]`` or None.
        A: ``[r, d_in]``.
        B: ``[d_out, N r]``, the columns of ``B_i`` side by side.
        router: ``[N, d_in]``; it reads x whole.
        scale: s.
        p: Probability with which an entry of x is dropped before A, below 1.

    Returns:
        ``[..., d_out]``, in autocast's dtype or W's.
    """
    rows = x.reshape(-1, x.shape[-1])
    low = LowRank.of(x, weight, scale, p)
    out: Tensor = _HydraLinear.apply(rows, weight, bias, A, B, router, low)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


class _HydraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Weight,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        router: Tensor,
        low: LowRank,
    ) -> Tensor:
        ctx.low, ctx.own, ctx.frozen = low, A.dtype, weight
        ctx.scale = low.scale if low.typed else low.scale / (1 - low.p)
        r, B = len(A), B.to(low.dtype)
        read = torch.cat([A, router]).to(low.dtype)
        y = product(rows, weight, bias, low.dtype)
        kept, mask = low.drop(rows)
        if mask is None:
            h, scores = (kept @ read.mT).split([r, len(router)], dim=1)
        else:
            h, scores = kept @ read[:r].mT, rows.to(low.dtype) @ read[r:].mT
        w = scores.softmax(-1, dtype=torch.promote_types(low.dtype, torch.float32))
        z = ((ctx.scale * w).to(low.dtype).unsqueeze(-1) * h.unsqueeze(1)).flatten(1)
        y.addmm_(z, B.mT)
        ctx.save_for_backward(rows, read, B, mask, h, w, z)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, read, B, mask, h, w, z = ctx.saved_tensors
        low, r = ctx.low, h.shape[1]
        x, g = rows.to(low.dtype), gradients[0].to(low.dtype)
        u = (g @ B).unflatten(1, (-1, r))
        a = ((ctx.scale * w).to(low.dtype).unsqueeze(1) @ u).squeeze(1)
        v = ctx.scale * (u @ h.unsqueeze(-1)).squeeze(-1).to(w.dtype)
        scores = (w * (v - (w * v).sum(-1, keepdim=True))).to(low.dtype)
        grad_x = pulled(g, ctx.frozen, low.dtype) if ctx.needs_input_grad[0] else None
        both = torch.cat([a, scores], dim=1)
        if mask is None:
            grad_A, grad_R = (both.mT @ x).split([r, len(read) - r])
            if grad_x is not None:
                grad_x.addmm_(both, read)
        else:
            grad_A, grad_R = a.mT @ low.masked(x, mask), scores.mT @ x
            if grad_x is not None:
                grad_x += low.masked(a @ read[:r], mask)
                grad_x.addmm_(scores, read[r:])
        grads = (grad.to(ctx.own) for grad in (grad_A, g.mT @ z, grad_R))
        return None if grad_x is None else grad_x.to(rows.dtype), None, None, *grads, None
