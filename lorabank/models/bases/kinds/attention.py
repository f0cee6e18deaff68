r"""`torch.nn.MultiheadAttention` as the linear layers that it consists of.

torch keeps query, key and value in one parameter, ``in_proj_weight [3 d, d]``, or in three where keys or values have a
width of their own (``kdim``, ``vdim``), and computes with it and with the weight of ``out_proj`` without calling a
module: a layer in the place of ``out_proj`` is never asked. In evaluation `torch.nn.TransformerEncoderLayer` computes
with the weights of its other two layers in the same way, in one fused kernel.

`Attention` is put in the place of such a module. It calls ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, linear
layers over the same numbers, and computes between them what torch does (arXiv 1706.03762, section 3.2):

    softmax(Q_h K_h^T / sqrt(d / H) + mask) V_h  for each head h = 1..H

So adapters find, train and mix its matrices as those of all linear layers, in every mode. It says of itself that it
has no fused weight, which torch asks before it takes a fused kernel, so that the layers beside it are called too.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUTS = ("q_proj", "k_proj", "v_proj")
"""The layers of query, key and value, in the order in which torch stacks them."""

OUTPUT = "out_proj"
"""The layer of the heads' answers; torch gives it this name."""


def is_attention(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is torch's attention; a subclass with a forward pass of its own is left alone."""
    own = type(module).forward is not nn.MultiheadAttention.forward or "forward" in vars(module)
    return isinstance(module, nn.MultiheadAttention) and not own


def unroll_attention(model: nn.Module) -> None:
    """Put `Attention` in the place of all attention of torch; its numbers stay where they are."""
    made: dict[nn.Module, Attention] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if is_attention(module):
            model.set_submodule(name, made.setdefault(module, Attention(module)))
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # its layers would get tensors that their fused kernel alone reads


def attention_in(model: nn.Module) -> set[str]:
    """The full names of the modules whose place `Attention` took."""
    return {name for name, module in model.named_modules() if isinstance(module, Attention)}


class Attention(nn.Module):
    """Multi-head attention with a linear layer for each of its matrices.

    Args:
        base: torch's; its parameters are viewed, not copied.

    Attributes:
        fused: Whether torch keeps query, key and value in one matrix.
    """

    in_proj_weight: None = None
    in_proj_bias: None = None
    _qkv_same_embed_dim = False
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(self, base: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = base.embed_dim, base.kdim, base.vdim
        self.num_heads, self.head_dim = base.num_heads, base.head_dim
        self.dropout, self.batch_first, self.add_zero_attn = base.dropout, base.batch_first, base.add_zero_attn
        self.fused = base.in_proj_weight is not None
        own = (base.q_proj_weight, base.k_proj_weight, base.v_proj_weight)
        weights: Any = base.in_proj_weight.chunk(3) if self.fused else own
        biases = (None,) * 3 if base.in_proj_bias is None else base.in_proj_bias.chunk(3)
        for name, weight, bias in zip(INPUTS, weights, biases, strict=True):
            self.add_module(name, _linear(weight, bias))
        self.out_proj = base.out_proj.requires_grad_(False)
        for name in ("bias_k", "bias_v"):
            row: Any = getattr(base, name)
            self.register_parameter(name, None if row is None else row.requires_grad_(False))
        self.train(base.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: the same arguments, ``[N, L, d]`` or ``[L, N, d]`` or ``[L, d]``, and the same two answers.

        Raises:
            RuntimeError: ``is_causal``, which is a hint beside a mask, is given without one.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says what attn_mask is, and no attn_mask is given")
        batched = query.dim() == 3
        q, k, v = (
            self.get_submodule(name)(self._batch_first(x, batched))
            for name, x in zip(INPUTS, (query, key, value), strict=True)
        )
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        mask = self._mask(attn_mask, key_padding_mask, len(q), k.shape[1], q.dtype)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, p)
        out = self.out_proj(out.transpose(1, 2).flatten(-2))
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def as_torch(self) -> dict[str, Tensor]:
        """What query, key and value have, by the names of torch's parameters; `OUTPUT` is a submodule there too."""
        layers: list[Any] = [self.get_submodule(name) for name in INPUTS]
        if self.fused:
            found = {"in_proj_weight": torch.cat([layer.weight for layer in layers])}
        else:
            found = {f"{name}_weight": layer.weight for name, layer in zip(INPUTS, layers, strict=True)}
        if layers[0].bias is not None:
            found["in_proj_bias"] = torch.cat([layer.bias for layer in layers])
        return found

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        """``[N, L, d]``."""
        if not batched:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values ``[N, S, d]`` with those that do not come from the input behind them."""
        rows = [x] if bias is None else [x, bias.to(x.dtype).expand(len(x), 1, -1)]
        return torch.cat([*rows, x.new_zeros(len(x), 1, x.shape[-1])] if self.add_zero_attn else rows, 1)

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, n: int, keys: int, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores ``[N, H, L, S]``, None where that is nothing."""
        total = None
        if attn_mask is not None:
            own = _additive(attn_mask, keys, dtype)
            total = own if own.dim() == 2 else own.view(n, self.num_heads, *own.shape[1:])
        if padding is not None:
            own = _additive(padding if padding.dim() == 2 else padding[None], keys, dtype)[:, None, None]
            total = own if total is None else total + own
        return total


def _additive(mask: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """A mask as numbers, 0 for the keys behind those of the input; True means that a key is not looked at."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    return F.pad(mask.to(dtype), (0, keys - mask.shape[-1]))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen linear layer over a matrix and a bias."""
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
    return layer
