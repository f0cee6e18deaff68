"""Matrices that compute query, key and value at once, and which of their rows are which.

The layouts are those of the models' code in transformers; a test finds each of them again in the model's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

Rows = slice | Tensor
"""Rows of a matrix: a slice, or int64 ``[n]`` where they do not lie together."""

LETTERS = ("q", "k", "v")


def _thirds(config: Any, rows: int) -> tuple[Rows, ...]:
    """All of q, then all of k, then all of v."""
    third = rows // 3
    return tuple(slice(i * third, (i + 1) * third) for i in range(3))


def _grouped(config: Any, rows: int) -> tuple[Rows, ...]:
    """As `_thirds`, with fewer heads for k and v than for q."""
    d = config.hidden_size // config.num_attention_heads
    d = getattr(config, "head_dim", None) or d
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    return slice(0, q), slice(q, q + kv), slice(q + kv, q + 2 * kv)


def _by_head(config: Any, rows: int) -> tuple[Rows, ...]:
    """Head by head, each with its q, its k and its v."""
    heads = config.num_attention_heads
    return tuple(torch.arange(rows).view(heads, 3, -1).unbind(1)[i].flatten() for i in range(3))


FUSED: Mapping[tuple[str, str], Callable[[Any, int], tuple[Rows, ...]]] = {
    ("bloom", "query_key_value"): _by_head,
    ("gpt2", "c_attn"): _thirds,
    ("gpt_neox", "query_key_value"): _by_head,
    ("modernbert", "Wqkv"): _thirds,
    ("mpt", "Wqkv"): _thirds,
    ("openai-gpt", "c_attn"): _thirds,
    ("phi3", "qkv_proj"): _grouped,
}
"""Model type and last name of the module to its layout."""


def blocks_of(model: nn.Module, name: str, module: nn.Module) -> dict[str, Rows] | None:
    """Letter to rows of a fused matrix; None for a module that is not known as one.

    Args:
        model: The model; its config says how many heads there are.
        name: Full name of the module.
        module: The module, which has a bias or ``out_features`` or ``nf``.
    """
    config: Any = getattr(model, "config", None)
    layout = FUSED.get((getattr(config, "model_type", ""), name.rpartition(".")[2]))
    if layout is None:
        return None
    size = int(getattr(module, "nf", 0) or module.out_features)  # type: ignore[arg-type]
    if layout is _thirds and size != 3 * config.hidden_size:  # the cross attention of GPT-2 has k and v alone
        return None
    return dict(zip(LETTERS, layout(config, size), strict=True))
