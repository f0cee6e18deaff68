r"""The adapter inside the weight, for steps of many tokens without dropout.

With ``W_eff = W + s B A``, made anew after each optimizer step, and n input rows x:

    forward     y = x W_eff^T + b
    backward    dL/dx = g W_eff,  from g = dL/dy
                u = s g B;        dL/dA = u^T x
                h = s x A^T;      dL/dB = g^T h

Two large and four thin products, where `lorabank.training.kernels.lora` needs two and six: the two that write
``[n, d_out]`` and ``[n, d_in]`` once more are gone. What it costs is W_eff, one more copy of the weight, written once
an optimizer step. Both are bound by memory, so the form pays where ``n (d_in + d_out)`` is above ``d_in d_out``
(`pays`).

It takes float32: rounded to bfloat16, W_eff would lose the small steps of A and B.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def effective_linear(x: Tensor, effective: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """``x W_eff^T + b``, differentiable once, in x, A and B.

    Args:
        x: ``[..., d_in]``, float32.
        effective: ``W + scale * B A``, ``[d_out, d_in]``, of A and B as they are now.
        bias: ``[d_out]`` or None; gets no gradient.
        A: ``[r, d_in]``.
        B: ``[d_out, r]``.
        scale: s.

    Returns:
        ``[..., d_out]``.
    """
    # The views are made outside of the function, as `lorabank.training.kernels.lora` does.
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _EffectiveLinear.apply(rows, effective, bias, A, B, scale)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], effective.shape[0])


class _EffectiveLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, effective: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(rows, effective, A, B)
        ctx.scale = scale
        return F.linear(rows, effective, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, effective, A, B = ctx.saved_tensors
        of_x, _, _, of_A, of_B, _ = ctx.needs_input_grad
        g = gradients[0]
        grad_A = (g @ B).mul_(ctx.scale).mT @ rows if of_A else None
        grad_B = g.mT @ (rows @ A.mT).mul_(ctx.scale) if of_B else None
        grad_x = g @ effective if of_x else None
        return grad_x, None, None, grad_A, grad_B, None
