r"""One mask and one product for layers that read the same tensor: query, key and value, or gate and up.

With G such layers on n input rows x, their A stacked to A_all [G r, d_in], and the mask M and c = s of the typed form
of `lorabank.training.kernels.low_rank`:

    first call     h_all = M(x) A_all^T                    [n, G r], one node of the graph
    each call      y_i = x W_i^T + b_i + s h_i B_i^T       another node, which keeps h_i and not x
    backward       dL/dh_i = s g_i B_i,  dL/dB_i = s g_i^T h_i,  dL/dx += g_i W_i   for each,
                   dL/dA_all = (dL/dh_all)^T M(x),  dL/dx += M(dL/dh_all A_all)     once

So one mask is drawn, kept and applied where there were G. The entries of x that are dropped are the same for all G
layers; each is dropped with the same probability as before. That the layers do read one tensor is seen in a pass
(`share_inputs`), and looked at again in each call: another tensor begins anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorabank.models.bases.quantised.linear import Weight, product, pulled
from lorabank.models.bases.sites import bias_of, weight_of
from lorabank.training.kernels.lora import converted
from lorabank.training.kernels.low_rank import LowRank
from lorabank.training.layers.layer import LoraLinear


class SharedInput:
    """The low-rank inputs of some layers.

    Args:
        layers: Two or more without a gain, of one scaling and one dropout.
    """

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self._layers = tuple(layers)
        self._of: Callable[[], Tensor | None] = lambda: None
        self._version = -1
        self._parts: dict[LoraLinear, Tensor] = {}
        for layer in layers:
            layer.shared = self.linear

    def linear(self, layer: LoraLinear, x: Tensor, p: float) -> Tensor:
        """What `lorabank.training.kernels.lora.lora_linear` computes for a layer, in the typed form."""
        weight, bias = weight_of(layer.base), bias_of(layer.base)
        low = LowRank.of(x, weight, layer.scaling, p)
        if self._of() is not x or self._version != x._version or layer not in self._parts:
            self._begin(x, low)
        h = self._parts.pop(layer)
        _, b = converted((layer.lora_A, layer.lora_B), layer.shadow, low.dtype)
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = _Beside.apply(rows, weight, bias, h, layer.lora_B, b, low)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], weight.shape[0])

    def _begin(self, x: Tensor, low: LowRank) -> None:
        own = [layer.lora_A for layer in self._layers]
        pairs = [converted((layer.lora_A, layer.lora_B), layer.shadow, low.dtype) for layer in self._layers]
        stacked = torch.cat([A.detach() for A, _ in pairs])
        h: Tensor = _Thin.apply(x.reshape(-1, x.shape[-1]), stacked, low, *own)  # type: ignore[no-untyped-call]
        self._of, self._version = weakref.ref(x), x._version
        self._parts = dict(zip(self._layers, h.split([len(A) for A in own], -1), strict=True))


class _Thin(torch.autograd.Function):
    """``M(x) A_all^T``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, stacked: Tensor, low: LowRank, *factors: Tensor) -> Tensor:
        ctx.low, ctx.sizes, ctx.own = low, [len(A) for A in factors], factors[0].dtype
        kept, mask = low.drop(rows)
        ctx.save_for_backward(rows, stacked, mask)
        return kept @ stacked.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, stacked, mask = ctx.saved_tensors
        u, grad_x, grads = gradients[0], None, [None] * len(ctx.sizes)
        if any(ctx.needs_input_grad[3:]):
            of_all = (u.mT @ ctx.low.masked(rows.to(ctx.low.dtype), mask)).to(ctx.own)
            grads = list(of_all.split(ctx.sizes))
        if ctx.needs_input_grad[0]:
            grad_x = ctx.low.masked(u @ stacked, mask).to(rows.dtype)
        return grad_x, None, None, *grads


class _Beside(torch.autograd.Function):
    """``x W^T + b + s h B^T``, in x, h and B."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Weight, bias: Tensor | None, h: Tensor, B: Tensor, b: Tensor, low: LowRank
    ) -> Tensor:
        ctx.low, ctx.own, ctx.of_rows, ctx.frozen = low, B.dtype, rows.dtype, weight
        y = product(rows, weight, bias, low.dtype)
        ctx.save_for_backward(h, b)
        return y.addmm_(h, b.mT, alpha=low.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h, b = ctx.saved_tensors
        of_x, _, _, of_h, of_B, _, _ = ctx.needs_input_grad
        g = gradients[0].to(ctx.low.dtype)
        grad_x = pulled(g, ctx.frozen, ctx.low.dtype).to(ctx.of_rows) if of_x else None
        grad_h = ctx.low.scaled(g, b) if of_h else None
        grad_B = ctx.low.scaled(g.mT, h).to(ctx.own) if of_B else None
        return grad_x, None, None, grad_h, grad_B, None, None


def share_inputs(layers: Iterable[LoraLinear], run: Callable[[], object]) -> list[SharedInput]:
    """Let layers that read the same tensor share their mask and product.

    Args:
        layers: Trainable layers; those of other kernels and with a gain are left alone.
        run: Passes something through the model that holds them.
    """
    able = [layer for layer in layers if layer.one_weight and layer.lora_gain is None]
    seen: dict[LoraLinear, list[Tensor]] = {layer: [] for layer in able}  # held, so that no two have one id

    def watch(layer: LoraLinear) -> Any:
        return layer.register_forward_pre_hook(lambda module, args: seen[layer].append(args[0]))

    hooks = [watch(layer) for layer in able]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    groups: dict[tuple[int, float, float], list[LoraLinear]] = {}
    for layer, inputs in seen.items():
        if len(inputs) == 1:
            groups.setdefault((id(inputs[0]), layer.scaling, layer.dropout), []).append(layer)
    return [SharedInput(group) for group in groups.values() if len(group) > 1]
