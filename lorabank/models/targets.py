"""Which modules of a base model get an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.core.errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    from torch import nn

QUERY_VALUE = (
    ("query", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT, ViT
    ("q_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, OPT, BART, GPT-J
    ("query_proj", "value_proj"),  # DeBERTa v2 and v3
    ("q_lin", "v_lin"),  # DistilBERT
    ("q", "v"),  # T5 (encoder, decoder and the attention between them), MPNet
    ("query_key_value",),  # GPT-NeoX, Falcon, BLOOM: one matrix for all three
    ("qkv_proj",),  # Phi-3
    ("Wqkv",),  # ModernBERT, MPT
)
"""Last names of the query and value projections, tried in turn."""


def resolve_target_modules(
    model: nn.Module, spec: str, head_modules: tuple[str, ...], first_layer: int = 0
) -> tuple[str, ...]:
    """The full names of the linear layers that get an adapter, in the model's order.

    A language model's last layer, from hidden states to words, gets none, as in PEFT: it often shares its weights
    with the embeddings.

    Args:
        model: The base model.
        spec: ``"auto"`` (query and value projections), ``"all-linear"`` (every linear layer but the head's), or last
            names of linear layers separated by commas; a longer ending such as ``attention.self.query`` works too.
        head_modules: Modules of the head, which gets no adapter.
        first_layer: Above 0, only modules in transformer layers of this number or a higher one, counted from 0. An
            encoder and a decoder are counted each by itself, so both keep their lowest layers as they are. What
            stands in no layer, such as a pooler, then gets none.

    Raises:
        ConfigError: A name fits no linear layer outside the head; the message lists those there are. Or no module
            lies in ``first_layer`` or above it.
        IncompatibleError: The model's projections have other names than those known, or it has no linear layers.
    """
    from torch import nn

    heads = tuple(f"{head}." for head in head_modules)
    output = _output_layer(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output and not f"{name}.".startswith(heads)
    ]
    endings = sorted({name.rpartition(".")[2] for name in linear})
    if not linear:
        raise IncompatibleError(f"{type(model).__name__} has no torch.nn.Linear layers to adapt outside its head")
    chosen = _chosen(type(model).__name__, linear, endings, spec)
    if first_layer == 0:
        return chosen
    places = {name: layer_of(model, name) for name in linear}
    upper = tuple(name for name in chosen if (place := places[name]) and place[1] >= first_layer)
    if not upper:
        layers = max((place[1] + 1 for place in places.values() if place), default=0)
        problem = f"the model has {layers} layers, counted from 0" if first_layer >= layers else "none in those layers"
        raise ConfigError(
            f"first_layer {first_layer} leaves no module of target_modules {spec!r} to adapt: {problem}",
            hint=f"--first-layer {layers // 2}",
        )
    return upper


def layer_of(model: nn.Module, name: str) -> tuple[str, int] | None:
    """The stack of transformer layers and the layer's number in it that a module stands in, None outside of them.

    It is the module's place in the outermost list of modules around it: ``("encoder.layer", 3)`` for
    ``encoder.layer.3.attention.self.query``, ``("decoder.block", 1)`` for ``decoder.block.1.layer.0.SelfAttention.q``.
    """
    from torch import nn

    parts = name.split(".")
    for depth, part in enumerate(parts):
        stack = ".".join(parts[:depth])
        if part.isdecimal() and isinstance(model.get_submodule(stack), nn.ModuleList):
            return stack, int(part)
    return None


def _chosen(model: str, linear: list[str], endings: list[str], spec: str) -> tuple[str, ...]:
    if spec == "all-linear":
        return tuple(linear)
    if spec == "auto":
        for pair in QUERY_VALUE:
            if set(pair) <= set(endings):
                return tuple(name for name in linear if name.rpartition(".")[2] in pair)
        raise IncompatibleError(
            f"{model} has no query and value projections of a known name",
            hint=f"--target-modules with some of: {', '.join(endings)}",
        )
    wanted = [word.strip() for word in spec.split(",") if word.strip()]
    unknown = [word for word in wanted if not any(_ends_with(name, word) for name in linear)]
    if unknown or not wanted:
        raise ConfigError(
            f"target_modules {', '.join(unknown) or spec!r}: no linear layer has that name; "
            f"there are {', '.join(endings)}",
            hint="--target-modules auto",
        )
    return tuple(name for name in linear if any(_ends_with(name, word) for word in wanted))


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that makes a language model's logits, None for another kind of model."""
    find = getattr(model, "get_output_embeddings", None)
    return find() if callable(find) else None


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
