"""Which matrices of a base model get an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.models.bases.kinds.attention import INPUTS, attention_in
from lorabank.models.bases.kinds.base import Parts
from lorabank.models.bases.passed_by import passed_by
from lorabank.models.bases.sites import Site, computes, lacking, layer_of, packed_because, sites_in

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
        return f"{count} modules get no adapter: {described(self.left_out)}" if count else None


def find_targets(model: PreTrainedModel, spec: str, head_modules: tuple[str, ...], first_layer: int = 0) -> Targets:
    """The matrices that get an adapter.

    A language model's last layer, from hidden states to words, gets none, as in PEFT: it often shares its weights
    with the embeddings. Neither does a layer that only is built on a linear one, nor one that the model's code never
    calls, nor one whose weight is packed.

    Args:
        model: The base model, with or without memory for its weights.
        spec: ``"auto"`` (query and value projections), ``"all-linear"`` (every linear layer but the head's), or last
            names of modules separated by commas; a longer ending such as ``attention.self.query`` works too. A block
            of a fused matrix is named by a letter behind its name, such as ``c_attn.q``. Of a convolution with groups,
            every group is a site.
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
    adaptable, blocks, others = adaptable_modules(model, head_modules)
    others |= dict.fromkeys(not_called(model, adaptable), "the model's code reads its weight and never calls it")
    able = {name: site for name, site in adaptable.items() if name not in others}
    linear = [name for name, site in able.items() if site.plain]
    odd = {site.name for site, _ in sites_in(model) if not site.plain}
    parts = {name: site for name, site in blocks.items() if site.module_name in able}
    kind = type(model).__name__
    if not (linear if spec == "all-linear" else able):
        own = {name: why for name, why in others.items() if name not in odd}
        said = f": {described(own)}" if own else ""
        raise IncompatibleError(
            f"{kind} has no linear layers to adapt outside its head{said}",
            hint="choose another base model: --base",
            unchanged="nothing was changed",
        )
    chosen = linear if spec == "all-linear" else _chosen(kind, list(able), parts, others, spec)
    words = [] if spec in ("auto", "all-linear") else words_of(spec)
    meant = {
        name: why
        for name, why in others.items()
        if (spec == "all-linear" and name not in odd) or any(ends_with(name, word) for word in words)
    }
    places = {name: place[1] for name in (*able, *meant) if (place := layer_of(model, name))}
    groups: dict[str, list[Site]] = {}
    for site in parts.values():
        if site.columns is not None:
            groups.setdefault(site.module_name, []).append(site)
    every = {name: [site] for name, site in (able | parts).items()} | groups
    sites = [site for name in chosen for site in every[name]]
    if first_layer > 0:
        sites = [site for site in sites if site.depth is not None and site.depth >= first_layer]
        meant = {n: why for n, why in meant.items() if places.get(n, -1) >= first_layer}
    if not sites:
        layers = max((place + 1 for place in places.values()), default=0)
        problem = f"the model has {layers} layers, counted from 0" if first_layer >= layers else "none in those layers"
        raise ConfigError(
            f"first_layer {first_layer} leaves no module of target_modules {spec!r} to adapt: {problem}",
            hint=f"--first-layer {layers // 2}",
            unchanged="nothing was changed",
        )
    return Targets(tuple(sites), meant, _not_adapted(model, head_modules, sites, able, others))


def adaptable_modules(
    model: nn.Module, head_modules: tuple[str, ...]
) -> tuple[dict[str, Site], dict[str, Site], dict[str, str]]:
    """What an adapter can change of the body: not the head, and not what makes a language model's logits.

    Returns:
        Full name to site, in the model's order. The blocks of those that are fused matrices or have groups, by their
        names. And the modules of the same classes that cannot have an adapter, full name to why: subclasses with a
        forward pass of their own (routers of experts), and packed ones.
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
        elif computes(site.module):
            linear[site.name] = site
            blocks |= {part.name: part for part in parts.values()}
        else:
            others[site.name] = lacking(site.module)
    return linear, blocks, others


def to_quantise(model: nn.Module, head_modules: tuple[str, ...]) -> list[Site]:
    """The linear layers of the body that a quantised base keeps in few bits, whole matrices all of them.

    As they are stay embeddings, convolutions, norms, the head, the layer that makes the logits, matrices of which a
    part can be adapted by itself (query, key and value in one, torch's attention included), and what an adapter cannot
    stand on.
    """
    able, blocks, _ = adaptable_modules(model, head_modules)
    fused = {part.module_name for part in blocks.values()}
    fused |= {f"{stem}.{part}" for stem in attention_in(model) for part in INPUTS}
    return [site for name, site in able.items() if site.plain and name not in fused]


def as_skipped(model: nn.Module, head_modules: tuple[str, ...]) -> tuple[str, ...]:
    """The other layers that bitsandbytes would quantise, by endings of names that no quantised layer has."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    taken = {site.name for site in to_quantise(model, head_modules)}
    alike = (name for name, module in model.named_modules() if type(module) is nn.Linear or isinstance(module, Conv1D))
    found: dict[str, None] = {}
    for name in alike:
        if name not in taken:
            stem, dot, last = name.rpartition(".")
            ending = f"{dot}{last}"
            found[name if not stem or any(one.endswith(ending) for one in taken) else ending] = None
    return tuple(found)


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
    behind = {id(module.base) for module in model.modules() if isinstance(module, Parts)}
    for name, module in model.named_modules():
        if name in chosen or id(module) in behind or not any(True for _ in module.parameters(recurse=False)):
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


def not_called(model: PreTrainedModel, names: Iterable[str]) -> tuple[str, ...]:
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


def _chosen(
    model: str, modules: list[str], blocks: Mapping[str, Site], others: Mapping[str, str], spec: str
) -> tuple[str, ...]:
    endings = sorted({without_number(name).rpartition(".")[2] for name in modules})
    if spec == "auto":
        for pair in QUERY_VALUE:
            if set(pair) <= set(endings):
                return tuple(name for name in modules if name.rpartition(".")[2] in pair)
        known = {ending for pair in QUERY_VALUE for ending in pair}
        unable = {name: why for name, why in others.items() if name.rpartition(".")[2] in known}
        problem = f"query and value projections that can be adapted: {described(unable)}" if unable else ""
        raise IncompatibleError(
            f"{model} has no {problem or 'query and value projections of a known name'}",
            hint=f"--target-modules with some of: {', '.join(endings)}",
        )
    fused = [name for name, site in blocks.items() if site.columns is None]
    endings += sorted({".".join(name.split(".")[-2:]) for name in fused})
    wanted = words_of(spec)
    whole = {word for word in wanted if any(ends_with(name, word) for name in modules)}
    unknown = [word for word in wanted if word not in whole and not any(ends_with(name, word) for name in blocks)]
    unable = {name: why for name, why in others.items() if any(ends_with(name, word) for word in unknown)}
    if unable:
        raise IncompatibleError(
            f"target_modules {', '.join(unknown)} cannot be adapted: {described(unable)}",
            hint=f"--target-modules with some of: {', '.join(endings)}",
            unchanged="nothing was changed",
        )
    if unknown or not wanted:
        raise ConfigError(
            f"target_modules {', '.join(unknown) or spec!r}: no module that can be adapted has that name; "
            f"there are {', '.join(endings)}",
            hint="--target-modules auto",
            unchanged="nothing was changed",
        )
    whole_ones = [name for name in modules if any(ends_with(name, word) for word in whole)]
    parts = [name for name in blocks if any(ends_with(name, word) for word in wanted if word not in whole)]
    twice = [name for name in parts if name.rpartition(".")[0] in whole_ones]
    if twice:
        raise ConfigError(
            f"target_modules {spec!r} means the matrix {twice[0].rpartition('.')[0]} and its block {twice[0]}",
            hint=f"name the matrix or its blocks: --target-modules {twice[0].rpartition('.')[2]}",
            unchanged="nothing was changed",
        )
    return (*whole_ones, *parts)


def described(others: Mapping[str, str]) -> str:
    """Each reason once, with the first module that it is the reason for."""
    first: dict[str, list[str]] = {}
    for name, why in others.items():
        first.setdefault(why, []).append(name)
    return "; ".join(f"{names[0]}{' and others' * (len(names) > 1)} ({why})" for why, names in first.items())


def words_of(spec: str) -> list[str]:
    """The names of a setting."""
    return [word.strip() for word in spec.split(",") if word.strip()]


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that makes a language model's logits, None for another kind of model."""
    find = getattr(model, "get_output_embeddings", None)
    return find() if callable(find) else None


def ends_with(name: str, ending: str) -> bool:
    """Whether a name ends so; a matrix of all experts is named without their numbers."""
    return any(f".{one}".endswith(f".{ending}") for one in (name, without_number(name)))


def without_number(name: str) -> str:
    """A module's name without the number of an expert at its end."""
    before, _, last = name.rpartition(".")
    return before if last.isdecimal() else name
