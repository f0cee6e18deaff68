"""Which modules of a base model get an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabank.core.errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

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


@dataclass(frozen=True)
class Targets:
    """Which linear layers get an adapter.

    Attributes:
        names: Their full names, in the model's order.
        left_out: What was meant too and cannot have one: full name to why.
    """

    names: tuple[str, ...]
    left_out: Mapping[str, str]

    @property
    def notice(self) -> str | None:
        """One line about what was left out; None where that is nothing."""
        count = len(self.left_out)
        return f"{count} modules get no adapter: {_described(self.left_out)}" if count else None


def resolve_target_modules(
    model: PreTrainedModel, spec: str, head_modules: tuple[str, ...], first_layer: int = 0
) -> tuple[str, ...]:
    """The full names of the linear layers that get an adapter; see `find_targets`."""
    return find_targets(model, spec, head_modules, first_layer).names


def find_targets(model: PreTrainedModel, spec: str, head_modules: tuple[str, ...], first_layer: int = 0) -> Targets:
    """The linear layers that get an adapter.

    A language model's last layer, from hidden states to words, gets none, as in PEFT: it often shares its weights
    with the embeddings. Neither does a layer that only is built on a linear one, nor one that the model's code never
    calls.

    Args:
        model: The base model, with or without memory for its weights.
        spec: ``"auto"`` (query and value projections), ``"all-linear"`` (every linear layer but the head's), or last
            names of linear layers separated by commas; a longer ending such as ``attention.self.query`` works too.
        head_modules: Modules of the head, which gets no adapter.
        first_layer: Above 0, only modules in transformer layers of this number or a higher one, counted from 0. An
            encoder and a decoder are counted each by itself, so both keep their lowest layers as they are. What
            stands in no layer, such as a pooler, then gets none.

    Raises:
        ConfigError: A name fits no linear layer outside the head; the message lists those there are. Or no module
            lies in ``first_layer`` or above it.
        IncompatibleError: The model's projections have other names than those known, it has no linear layers, or
            those of a name are none that an adapter can stand on.
    """
    linear, others = linear_layers(model, head_modules)
    others |= dict.fromkeys(_passed_by(model, linear), "the model's code reads its weight and never calls it")
    able = [name for name in linear if name not in others]
    kind = type(model).__name__
    if not able:
        own = f": {_described(others)}" if others else ""
        raise IncompatibleError(
            f"{kind} has no torch.nn.Linear layers to adapt outside its head{own}",
            hint="another base model: --base",
            unchanged="nothing was changed",
        )
    chosen = _chosen(kind, able, others, spec)
    words = [] if spec in ("auto", "all-linear") else _words(spec)
    meant = {n: why for n, why in others.items() if spec == "all-linear" or any(_ends_with(n, w) for w in words)}
    if first_layer == 0:
        return Targets(chosen, meant)
    places = {name: layer_of(model, name) for name in (*able, *meant)}
    upper = {name for name, place in places.items() if place and place[1] >= first_layer}
    if not upper.intersection(chosen):
        layers = max((place[1] + 1 for place in places.values() if place), default=0)
        problem = f"the model has {layers} layers, counted from 0" if first_layer >= layers else "none in those layers"
        raise ConfigError(
            f"first_layer {first_layer} leaves no module of target_modules {spec!r} to adapt: {problem}",
            hint=f"--first-layer {layers // 2}",
        )
    return Targets(tuple(name for name in chosen if name in upper), {n: why for n, why in meant.items() if n in upper})


def linear_layers(model: nn.Module, head_modules: tuple[str, ...]) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """The linear layers of the body: not the head's, and not the one that makes a language model's logits.

    Returns:
        Full name to module, in the model's order. And the layers that are like a linear one and do something else,
        full name to why: subclasses of `torch.nn.Linear` with a forward pass of their own (routers of experts), and
        GPT-2's ``Conv1D``, which keeps its weight transposed.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from lorabank.models.bases.wrapping import is_linear

    heads = tuple(f"{head}." for head in head_modules)
    output = _output_layer(model)
    linear, others = {}, {}
    for name, module in model.named_modules():
        if module is output or f"{name}.".startswith(heads):
            continue
        if isinstance(module, Conv1D):
            others[name] = "Conv1D is not a torch.nn.Linear"
        elif isinstance(module, nn.Linear):
            if is_linear(module):
                linear[name] = module
            else:
                others[name] = f"{type(module).__name__} is not a plain torch.nn.Linear"
    return linear, others


def _passed_by(model: PreTrainedModel, names: Iterable[str]) -> tuple[str, ...]:
    """Layers that a training step goes by, as far as one pass over a few tokens tells."""
    import torch

    from lorabank.models.bases.body import pass_through
    from lorabank.models.bases.wrapping import passed_by

    training, device = model.training, next(model.parameters()).device
    ids = torch.zeros((1, 4), dtype=torch.long, device=device)
    gpus = [device] if device.type == "cuda" else []
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=gpus):
            return passed_by(model, names, lambda: pass_through(model, ids))
    except Exception:  # it asks for more than token ids, or for values where there are only shapes: training will tell
        return ()
    finally:
        model.train(training)


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


def _chosen(model: str, linear: list[str], others: Mapping[str, str], spec: str) -> tuple[str, ...]:
    endings = sorted({name.rpartition(".")[2] for name in linear})
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
    wanted = _words(spec)
    unknown = [word for word in wanted if not any(_ends_with(name, word) for name in linear)]
    unable = {name: why for name, why in others.items() if any(_ends_with(name, word) for word in unknown)}
    if unable:
        raise IncompatibleError(
            f"target_modules {', '.join(unknown)} cannot be adapted: {_described(unable)}",
            hint=f"--target-modules with some of: {', '.join(endings)}",
            unchanged="nothing was changed",
        )
    if unknown or not wanted:
        raise ConfigError(
            f"target_modules {', '.join(unknown) or spec!r}: no linear layer has that name; "
            f"there are {', '.join(endings)}",
            hint="--target-modules auto",
        )
    return tuple(name for name in linear if any(_ends_with(name, word) for word in wanted))


def _described(others: Mapping[str, str]) -> str:
    """Each reason once, with the first module that it is the reason for."""
    first: dict[str, list[str]] = {}
    for name, why in others.items():
        first.setdefault(why, []).append(name)
    return "; ".join(f"{names[0]}{' and others' * (len(names) > 1)} ({why})" for why, names in first.items())


def _words(spec: str) -> list[str]:
    return [word.strip() for word in spec.split(",") if word.strip()]


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that makes a language model's logits, None for another kind of model."""
    find = getattr(model, "get_output_embeddings", None)
    return find() if callable(find) else None


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
