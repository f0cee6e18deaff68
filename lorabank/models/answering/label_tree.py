"""All labels behind one prompt in one forward pass: their tokens as a tree.

    prompt  ... Answer:  +-- very --+-- good --- </s>
                         |          +-- bad  --- </s>
                         +-- good --- </s>

Labels that begin alike share those tokens. The last token of a label predicts nothing and is not passed. Every node
stands in a column of its own behind the left-padded prompt; it sees the prompt and its ancestors (a 4D attention
mask), and its position counts from the prompt on. Its output is then that of a plain pass over prompt and label.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorabank.models.finite import log_total
from lorabank.models.tasks.batches import forward, pad_left, takes, takes_positions

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class LabelTree:
    """L labels as a tree of m nodes, parents first.

    Attributes:
        tokens: int64 ``[m]``, the token of each node.
        depth: int64 ``[m]``, 0 for a node directly behind the prompt.
        sees: bool ``[m, m]``; row i says which nodes node i sees: its ancestors and itself.
        source: int64 ``[t]``, for each of the labels' t tokens the column whose output predicts it: 0 is the prompt's
            last token, i + 1 is node i.
        target: int64 ``[t]``, those tokens.
        label: int64 ``[t]``, the label that each of them belongs to.
        size: L.
    """

    tokens: Tensor
    depth: Tensor
    sees: Tensor
    source: Tensor
    target: Tensor
    label: Tensor
    size: int

    @classmethod
    def build(cls, labels: Sequence[list[int]]) -> LabelTree:
        """The tree of some labels' token ids, each of at least one token."""
        nodes: dict[tuple[int, ...], int] = {}
        source: list[int] = []
        for ids in labels:
            for k in range(len(ids)):
                path = tuple(ids[:k])
                if k:
                    nodes.setdefault(path, len(nodes))
                source.append(nodes[path] + 1 if k else 0)
        sees = torch.zeros((len(nodes), len(nodes)), dtype=torch.bool)
        for path, i in nodes.items():
            sees[i, [nodes[path[:k]] for k in range(1, len(path) + 1)]] = True
        return cls(
            tokens=torch.tensor([path[-1] for path in nodes], dtype=torch.long),
            depth=torch.tensor([len(path) - 1 for path in nodes], dtype=torch.long),
            sees=sees,
            source=torch.tensor(source),
            target=torch.tensor([token for ids in labels for token in ids]),
            label=torch.tensor([i for i, ids in enumerate(labels) for _ in ids]),
            size=len(labels),
        )

    def to(self, device: torch.device) -> LabelTree:
        """The same on a device."""
        names = ("tokens", "depth", "sees", "source", "target", "label")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def columns(self) -> int:
        """Columns whose logits are needed: the prompt's last token and the nodes."""
        return len(self.tokens) + 1


@dataclass(frozen=True)
class Prefix:
    """Tokens that all prompts begin with, passed once: their number and the keys and values of one row."""

    length: int
    cache: Any


def takes_tree(model: Any, longest: int) -> bool:
    """Whether a causal model's forward pass computes a tree right, for rows of at most ``longest`` tokens.

    It does where transformers' own interfaces make mask and attention, so that a 4D mask is used as it is, where
    positions are taken from ``position_ids``, and where every token sees all of ``longest`` tokens.
    """
    config = model.config.get_text_config(decoder=True)
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and config._attn_implementation in ("eager", "sdpa")
        and takes_positions(model)
        and keeps_keys(model)
        and all(not window or longest <= window for window in windows)
    )


def keeps_keys(model: Any) -> bool:
    """Whether a cache of keys and values is all that a causal model knows of earlier tokens.

    Not so with a recurrent state or a convolution over the tokens, nor where there is no cache.
    """
    layers = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    recurrent = getattr(model, "_is_stateful", False) or not set(layers) <= _ATTENTION_LAYERS
    return takes(model, "past_key_values") and not recurrent


def pass_prefix(model: Any, ids: list[int]) -> Prefix:
    """Pass the tokens that all prompts begin with."""
    input_ids = torch.tensor([ids], device=model.device)
    return Prefix(len(ids), forward(model, 1, input_ids=input_ids, use_cache=True).past_key_values)


def tree_log_likelihoods(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], tree: LabelTree, prefix: Prefix | None
) -> Tensor:
    """Log-likelihood of every label behind every prompt, float64 ``[n, L]``, from one forward pass.

    Args:
        model: A causal model that ``takes_tree``.
        tokenizer: Its tokenizer, which has a pad token.
        prompts: n prompts, each with a token more than the prefix.
        tree: The labels, on the model's device.
        prefix: What all prompts begin with, or None.
    """
    past = prefix.length if prefix else 0
    device = model.device
    rest = pad_left(tokenizer, [prompt[past:] for prompt in prompts], device)
    rows = len(prompts)
    lengths = rest["attention_mask"].sum(-1, keepdim=True) + past
    inputs: dict[str, Any] = {
        "input_ids": torch.cat([rest["input_ids"], tree.tokens.expand(rows, -1)], 1),
        "position_ids": torch.cat([rest["position_ids"] + past, lengths + tree.depth], 1),
        "attention_mask": tree_mask(rest["attention_mask"].bool(), tree.sees, past, model.dtype),
        "use_cache": False,
    }
    if prefix:
        cache = copy.deepcopy(prefix.cache)
        cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device=device))
        inputs |= {"past_key_values": cache, "use_cache": True}
    logits = forward(model, tree.columns, **inputs).logits.float()
    picked: Tensor = (logits[:, tree.source, tree.target] - log_total(logits)[:, tree.source]).double()
    return picked.new_zeros(rows, tree.size).index_add_(1, tree.label, picked)


def tree_mask(prompt: Tensor, sees: Tensor, past: int, dtype: torch.dtype) -> Tensor:
    """What each token sees, as what is added to the attention's scores.

    Args:
        prompt: bool ``[n, s]``, True for the tokens of a left-padded prompt.
        sees: bool ``[m, m]``, the tree's own part.
        past: Tokens of the prefix, which all see.
        dtype: The model's.

    Returns:
        ``[n, 1, s + m, past + s + m]``: 0 or the dtype's lowest number. A padding token sees itself, so that no row of
        the attention is empty.
    """
    s, m = prompt.shape[1], len(sees)
    allowed = torch.zeros((s + m, s + m), dtype=torch.bool, device=prompt.device)
    allowed[:s, :s] = torch.ones((s, s), dtype=torch.bool, device=prompt.device).tril()
    allowed[s:, :s] = True
    allowed[s:, s:] = sees
    real = torch.nn.functional.pad(prompt, (0, m), value=True)
    itself = torch.eye(s + m, dtype=torch.bool, device=prompt.device)
    visible = (allowed & real[:, None, :]) | itself
    visible = torch.nn.functional.pad(visible, (past, 0), value=True)[:, None]
    return torch.zeros(visible.shape, dtype=dtype, device=prompt.device).masked_fill_(~visible, torch.finfo(dtype).min)
