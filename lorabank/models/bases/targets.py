"""Which matrices of a base model get an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.models.bases.passed_by import passed_by
from lorabank.models.bases.sites import Site, is_linear, layer_of, packed_because, sites_in

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
    ("c_attn",),  # GPT-2, OpenAI GPT
)
"""Last names of the query and value projections, tried in turn."""


@dataclass(frozen=True)
class Targets:
    """Which matrices of a model get an adapter.

    Attributes:
        sites: They, in the model's order.
        left_out: What was meant too and cannot have one: full name to why.
        not_adapted: Everything else that has weights, kind by kind in one line each.
    """

    sites: tuple[Site, ...]
    left_out: Mapping[str, str]
    not_adapted: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(site.name for site in self.sites)

    @property
    def modules(self) -> tuple[str, ...]:
        """The full names of the modules that hold the sites: of several blocks of one module that module once."""
        return tuple(dict.fromkeys(site.module_name for site in self.sites))

    @property
    def notice(self) -> str | None:
        """One line about what was left out; None where that is nothing."""
        count = len(self.left_out)
        return f"{count} modules get no adapter: {_described(self.left_out)}" if count else None


def find_targets(model: PreTrainedModel, spec: str, head_modules: tuple[str, ...], first_layer: int = 0) -> Targets:
    """The matrices that get an adapter.

    A language model's last layer, from hidden states to words, gets none, as in PEFT: it often shares its weights
    with the embeddings. Neither does a layer that only is built on a linear one, nor one that the model's code never
    calls, nor one whose weight is packed.

    Args:
        model: The base model, with or without memory for its weights.
        spec: ``"auto"`` (query and value projections), ``"all-linear"`` (every linear layer but the head's), or last
            names of linear layers separated by commas; a longer ending such as ``attention.self.query`` works too.
            A block of a fused matrix is named by a letter behind its name, such as ``c_attn.q``.
        head_modules: Modules of the head, which gets no adapter.
        first_layer: Above 0, only modules in transformer layers of this number or a higher one, counted from 0. An
            encoder and a decoder are counted each by itself, so both keep their lowest layers as they are. What
            stands in no layer, such as a pooler, then gets none.

    Raises:
        ConfigError: A name fits no linear layer outside the head; the message lists those there are. Or a matrix and
            a block of it are both meant, or no module lies in ``first_layer`` or above it.
        IncompatibleError: The model's projections have other names than those known, it has no linear layers, or
            those of a name are none that an adapter can stand on.
    """
    linear, blocks, others = linear_layers(model, head_modules)
    others |= dict.fromkeys(_passed_by(model, linear), "the model's code reads its weight and never calls it")
    able = {name: site for name, site in linear.items() if name not in others}
    parts = {name: site for name, site in blocks.items() if site.module_name in able}
    kind = type(model).__name__
    if not able:
        own = f": {_described(others)}" if others else ""
        raise IncompatibleError(
            f"{kind} has no linear layers to adapt outside its head{own}",
            hint="another base model: --base",
            unchanged="nothing was changed",
        )
    chosen = _chosen(kind, list(able), list(parts), others, spec)
    words = [] if spec in ("auto", "all-linear") else _words(spec)
    meant = {n: why for n, why in others.items() if spec == "all-linear" or any(_ends_with(n, w) for w in words)}
    places = {name: place[1] for name in (*able, *meant) if (place := layer_of(model, name))}
    sites = [(able | parts)[name] for name in chosen]
    if first_layer > 0:
        sites = [site for site in sites if site.depth is not None and site.depth >= first_layer]
        meant = {n: why for n, why in meant.items() if places.get(n, -1) >= first_layer}
    if not sites:
        layers = max((place + 1 for place in places.values()), default=0)
        problem = f"the model has {layers} layers, counted from 0" if first_layer >= layers else "none in those layers"
        raise ConfigError(
            f"first_layer {first_layer} leaves no module of target_modules {spec!r} to adapt: {problem}",
            hint=f"--first-layer {layers // 2}",
        )
    return Targets(tuple(sites), meant, _not_adapted(model, head_modules, sites, able, others))


def linear_layers(
    model: nn.Module, head_modules: tuple[str, ...]
) -> tuple[dict[str, Site], dict[str, Site], dict[str, str]]:
    """The linear layers of the body: not the head's, and not the one that makes a language model's logits.

    Returns:
        Full name to site, in the model's order. The blocks of those that are fused matrices, by their names. And the
        layers that are like a linear one and cannot have an adapter, full name to why: subclasses of
        `torch.nn.Linear` with a forward pass of their own (routers of experts), and packed ones.
    """
    heads = tuple(f"{head}." for head in head_modules)
    output = _output_layer(model)
    linear: dict[str, Site] = {}
    blocks: dict[str, Site] = {}
    others: dict[str, str] = {}
    for site, parts in sites_in(model):
        if site.module is output or f"{site.name}.".startswith(heads):
            continue
        if not site.can_merge:
            others[site.name] = packed_because(site.module)
        elif is_linear(site.module):
            linear[site.name] = site
            blocks |= {part.name: part for part in parts.values()}
        else:
            others[site.name] = f"{type(site.module).__name__} is not a plain torch.nn.Linear"
    return linear, blocks, others


def _not_adapted(
    model: nn.Module,
    head_modules: tuple[str, ...],
    sites: Iterable[Site],
    able: Mapping[str, Site],
    others: Mapping[str, str],
) -> tuple[str, ...]:
    """Every module with weights of its own that no adapter changes, by kind and reason."""
    chosen = {site.module_name: site for site in sites}
    heads, output = tuple(f"{head}." for head in head_modules), _output_layer(model)
    found: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        if name in chosen or not any(True for _ in module.parameters(recurse=False)):
            continue
        if f"{name}.".startswith(heads) and heads:
            why = "the head, which is trained in full"
        elif module is output:
            why = "it makes the logits"
        elif name in able:
            why = "not among the target modules"
        else:
            why = others.get(name, "not a kind of module that an adapter can change")
        found.setdefault((type(module).__name__, why), []).append(name)
    return tuple(f"{len(names)} {kind}, such as {names[0]}: {why}" for (kind, why), names in found.items())


def _passed_by(model: PreTrainedModel, names: Iterable[str]) -> tuple[str, ...]:
    """Layers that a training step goes by, as far as one pass over a few tokens tells."""
    import torch

    from lorabank.models.bases.body import pass_through

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


def _chosen(model: str, linear: list[str], blocks: list[str], others: Mapping[str, str], spec: str) -> tuple[str, ...]:
    endings = sorted({name.rpartition(".")[2] for name in linear})
    if spec == "all-linear":
        return tuple(linear)
    if spec == "auto":
        for pair in QUERY_VALUE:
            if set(pair) <= set(endings):
                return tuple(name for name in linear if name.rpartition(".")[2] in pair)
        known = {ending for pair in QUERY_VALUE for ending in pair}
        unable = {name: why for name, why in others.items() if name.rpartition(".")[2] in known}
        problem = f"query and value projections that can be adapted: {_described(unable)}" if unable else ""
        raise IncompatibleError(
            f"{model} has no {problem or 'query and value projections of a known name'}",
            hint=f"--target-modules with some of: {', '.join(endings)}",
        )
    endings += sorted({".".join(name.split(".")[-2:]) for name in blocks})
    wanted = _words(spec)
    whole = {word for word in wanted if any(_ends_with(name, word) for name in linear)}
    unknown = [word for word in wanted if word not in whole and not any(_ends_with(name, word) for name in blocks)]
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
    modules = [name for name in linear if any(_ends_with(name, word) for word in whole)]
    parts = [name for name in blocks if any(_ends_with(name, word) for word in wanted if word not in whole)]
    twice = [name for name in parts if name.rpartition(".")[0] in modules]
    if twice:
        raise ConfigError(
            f"target_modules {spec!r} means the matrix {twice[0].rpartition('.')[0]} and its block {twice[0]}",
            hint=f"name the matrix or its blocks: --target-modules {twice[0].rpartition('.')[2]}",
            unchanged="nothing was changed",
        )
    return (*modules, *parts)


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
