r"""A linear module with an adapter as one node of the graph.

With n input rows x, frozen W [d_out, d_in] and b, and the low-rank part of `lorabank.training.kernels.low_rank`:

    forward     y = x W^T + b;  the low-rank part is added in place
    backward    dL/dx = g W, from g = dL/dy;  the low-rank part's is added in place

This is what autograd makes of ``F.linear(x, W, b) + s * F.linear(F.linear(F.dropout(x, p), A), B)``, in two large and
six thin products. It differs in what it writes and keeps: the adapter's output is added while it is computed and is
never a tensor of its own, the scalings fall on thin tensors or into products, and for the backward pass stay x (which
the model holds anyway), h and one byte for each entry of the mask; the masked x is made again. Gradients that are
not needed are not computed.

Every product is in the dtype of the base: W's, or that of autocast. Factors of another dtype are converted, once for
each step where the layer keeps them so (`lorabank.training.layers.shadows`); their gradients have their own dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorabank.models.bases.quantised.linear import Weight, product, pulled
from lorabank.training.kernels.low_rank import LowRank

Factors = tuple[Tensor, Tensor]
"""A ``[r, d_in]`` and B ``[d_out, r]``."""


def lora_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    p: float,
    shadow: Factors | None = None,
) -> Tensor:
    """``x W^T + b + scale * dropout(x) A^T B^T``, differentiable once, in x, A and B.

    Args:
        x: ``[..., d_in]``, in W's dtype unless under autocast.
        weight: W, ``[d_out, d_in]``, or what makes it; gets no gradient, nor does the bias.
        bias: ``[d_out]`` or None.
        A: ``[r, d_in]``.
        B: ``[d_out, r]``, in A's dtype.
        scale: s.
        p: Probability with which an entry of x is dropped before A, below 1; nothing is drawn for 0.
        shadow: A and B in another dtype, used where that is the one of the products.

    Returns:
        ``[..., d_out]``, in autocast's dtype or W's.
    """
    # A view made inside the function could not be changed in place, which models do with a linear layer's output.
    rows = x.reshape(-1, x.shape[-1])
    low = LowRank.of(x, weight, scale, p)
    out: Tensor = _LoraLinear.apply(rows, weight, bias, A, B, converted((A, B), shadow, low.dtype), low)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


def converted(factors: Factors, shadow: Factors | None, dtype: torch.dtype) -> Factors:
    """The factors in the dtype of the products."""
    A, B = factors
    if A.dtype == dtype:
        return factors
    return shadow if shadow is not None and shadow[0].dtype == dtype else (A.detach().to(dtype), B.detach().to(dtype))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Weight,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        factors: Factors,
        low: LowRank,
    ) -> Tensor:
        ctx.low, ctx.own, ctx.frozen = low, A.dtype, weight
        y = product(rows, weight, bias, low.dtype)
        mask, h = low.add(y, rows, *factors)
        ctx.save_for_backward(rows, *factors, mask, h if ctx.needs_input_grad[4] else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, A, B, mask, h = ctx.saved_tensors
        of_x, _, _, *of_factors, _, _ = ctx.needs_input_grad
        g = gradients[0].to(ctx.low.dtype)
        grad_x = pulled(g, ctx.frozen, ctx.low.dtype) if of_x else None
        grads = ctx.low.gradients(g, rows, A, B, mask, h, grad_x, of_factors)
        grad_A, grad_B = (grad if grad is None else grad.to(ctx.own) for grad in grads)
        return None if grad_x is None else grad_x.to(rows.dtype), None, None, grad_A, grad_B, None, None
