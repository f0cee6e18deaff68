"""The residual branches of a model's layers: attentions and feed-forward networks, each up to its last linear layer.

transformers gives no name to what a layer adds to its input. The last linear layers of branches are known by theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from torch import nn

from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.sites import WrappedLinear, kind_of, sizes_of
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.savings.base import layers_in

ATTENTIONS = (
    "o_proj", "out_proj", "attn.c_proj", "attention.output.dense", "attention.dense", "self_attention.dense",
    "self_attn.dense", "SelfAttention.o", "EncDecAttention.o", "out_lin", "attn.Wo",
)  # fmt: skip
"""How the last linear layer of an attention is called."""

NETWORKS = (
    "down_proj", "mlp.c_proj", "fc2", "fc_out", "output.dense", "dense_4h_to_h", "DenseReluDense.wo", "ffn.lin2",
    "mlp.Wo",
)  # fmt: skip
"""How that of a feed-forward network is called; a name of `ATTENTIONS` goes first."""


class Branch(NamedTuple):
    """A residual branch.

    Attributes:
        name: Full name of its last linear layer.
        end: That layer.
        attention: Whether it is an attention and not a feed-forward network.
        weights: Numbers in the matrices of its linear layers, to which its work for a token is proportional.
        adapted: Whether it holds a layer of the adapter.
    """

    name: str
    end: nn.Module
    attention: bool
    weights: int
    adapted: bool


def unknown_branches(model: nn.Module, adapted: Collection[str] = ()) -> IncompatibleError | None:
    """Why no branch of a model can be used: none is known, or none is adapted. None where one can be used.

    Args:
        model: With or without an adapter's layers.
        adapted: Full names of the modules that will be adapted.
    """
    if any(branch.adapted for branch in branches_of(model, adapted)):
        return None
    return IncompatibleError(
        f"lorabank does not know where the layers of {type(model).__name__} add to their inputs, or nothing there is "
        "adapted",
        hint="choose another --saving, or none",
        unchanged="nothing was changed",
    )


def branches_of(model: nn.Module, adapted: Collection[str] = ()) -> list[Branch]:
    """The branches in the model's order; arguments as of `unknown_branches`."""
    found = []
    for name, layer in layers_in(model):
        weights, inside = 0, False
        for inner, module in _outermost_linear(layer):
            d_out, d_in = sizes_of(module)
            full = f"{name}.{inner}"
            weights, inside = weights + d_out * d_in, inside or full in adapted or isinstance(module, LoraLinear)
            attention = full.endswith(tuple(f".{end}" for end in ATTENTIONS))
            if attention or full.endswith(tuple(f".{end}" for end in NETWORKS)):
                found.append(Branch(full, module, attention, weights, inside))
                weights, inside = 0, False
    return found


def _outermost_linear(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """The linear layers in one, with adapters around them counted once."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in layer.named_modules():
        inside = name.rpartition(".")[2] == "base" or any(name.startswith(f"{outer}.") for outer, _ in found)
        kind = kind_of(module)
        if not inside and (isinstance(module, WrappedLinear) or (kind is not None and kind.plain)):
            found.append((name, module))
    return found
