"""Which biases of a base model get an adapter, where the biases alone are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.algebra.biases import ENDING
from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.models.bases.kinds.attention import INPUTS, attention_in
from lorabank.models.bases.kinds.bias import is_norm
from lorabank.models.bases.kinds.experts import matrices_in
from lorabank.models.bases.sites import Site, bias_site
from lorabank.models.bases.targets import (
    Targets,
    adaptable_modules,
    described,
    ends_with,
    not_called,
    words_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNCHANGED = "nothing was changed"


def find_biases(model: PreTrainedModel, spec: str, head_modules: tuple[str, ...], first_layer: int = 0) -> Targets:
    """The biases that get an adapter: of linear layers and of layer norms, outside of the head.

    Args:
        model: The base model, with or without memory for its weights.
        spec: ``"auto"`` (every bias of the body, as in the paper), ``"all-linear"`` (those of linear layers), or last
            names of modules separated by commas, as for `find_targets`.
        head_modules: Modules of the head, which is trained in full.
        first_layer: As for `find_targets`.

    Raises:
        ConfigError: A name fits no module with a bias, or means a block of a fused matrix; or none of the biases
            belongs to a linear layer, or lies in ``first_layer`` or above it.
        IncompatibleError: The model has no biases.
    """
    linear, others = _owners(model, head_modules)
    norms = _norms(model, head_modules)
    found = {name: site for name in (*linear, *norms) if (site := bias_site(model, name))}
    ordered = {name: found[name] for name, _ in model.named_modules() if name in found}
    if not any(name in linear for name in ordered):
        raise IncompatibleError(
            f"{type(model).__name__} has no biases to train: none of its linear layers outside the head has one",
            hint="choose another --variant, such as lora, or another base model: --base",
            unchanged=_UNCHANGED,
        )
    chosen, left_out = _chosen(ordered, linear, others, spec)
    if first_layer > 0:
        chosen = {name: site for name, site in chosen.items() if site.depth is not None and site.depth >= first_layer}
    if not any(name in linear for name in chosen):
        raise ConfigError(
            f"target_modules {spec!r} names no bias of a linear layer"
            + f" in layer {first_layer} or above it" * (first_layer > 0)
            + ", and PEFT loads biases beside an adapted linear layer alone",
            hint="--target-modules auto",
            unchanged=_UNCHANGED,
        )
    rest = [name for name in ordered if name not in chosen]
    told: tuple[str, ...] = (
        (f"{len(rest)} biases, such as {rest[0]}{ENDING}: not among the target modules",) if rest else ()
    )
    told += ("every weight: the variant trains biases alone",)
    if others:
        told += (f"{len(others)} biases that cannot be adapted: {described(others)}",)
    return Targets(tuple(chosen.values()), left_out, told)


def _owners(model: PreTrainedModel, head_modules: tuple[str, ...]) -> tuple[dict[str, Site], dict[str, str]]:
    """The linear layers whose bias can be adapted, and others with the reason."""
    able, _, _ = adaptable_modules(model, head_modules)
    stacked = {f"{stem}.{part}" for stem in attention_in(model) for part in INPUTS}
    experts, passed = matrices_in(model), set(not_called(model, able))
    others = {}
    for name, site in able.items():
        if name in stacked:
            others[name] = "torch's attention keeps the biases of query, key and value in one vector"
        elif name in experts:
            others[name] = "the experts of a layer keep their biases in one tensor"
        elif name in passed:
            others[name] = "the model's code reads its weight and never calls it"
        elif not site.plain:
            others[name] = "its answers are not rows of as many numbers as the bias has"
    return {name: site for name, site in able.items() if name not in others}, others


def _norms(model: PreTrainedModel, head_modules: tuple[str, ...]) -> list[str]:
    heads = tuple(f"{head}." for head in head_modules)
    names = [name for name, module in model.named_modules() if is_norm(module)]
    outside = [name for name in names if not f"{name}.".startswith(heads)]
    passed = set(not_called(model, outside))
    return [name for name in outside if name not in passed]


def _chosen(
    found: dict[str, Site], linear: dict[str, Site], others: dict[str, str], spec: str
) -> tuple[dict[str, Site], dict[str, str]]:
    """The sites that a setting names, by module; and the modules that it names and that have none, with the reason."""
    if spec == "auto":
        return found, {}
    if spec == "all-linear":
        return {name: site for name, site in found.items() if name in linear}, {}
    words = [word.removesuffix(ENDING) for word in words_of(spec)]
    chosen = {name: site for name, site in found.items() if any(ends_with(name, word) for word in words)}
    bare = {name: "it has no bias" for name in linear if name not in found}
    meant = {name: why for name, why in (bare | others).items() if any(ends_with(name, word) for word in words)}
    unknown = [word for word in words if not any(ends_with(name, word) for name in (*chosen, *meant))]
    if unknown or not chosen:
        endings = ", ".join(sorted({name.rpartition(".")[2] for name in found}))
        why = described(meant) if meant and not unknown else "no module of that name has a bias"
        raise ConfigError(
            f"target_modules {', '.join(unknown) or spec} cannot be adapted: {why}; whole modules with a bias are "
            f"{endings}",
            hint="--target-modules auto",
            unchanged=_UNCHANGED,
        )
    return chosen, meant
