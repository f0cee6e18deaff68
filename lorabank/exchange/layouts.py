"""The tensors of an adapter in the layout that PEFT gives a kind of module: kernels, and experts in one tensor.

lorabank writes every adapter by matrices, A and B. On modules other than linear layers PEFT has other names and
shapes (`SiteKind.in_peft`), from which `lorabank.exchange.peft_folder` reads the matrices again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.exchange.attention_layout import TWICE, attention_of, not_in_peft, passed_by_kernels, stack_attention
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE, saved, scaling_of, with_fields
from lorabank.exchange.stored_factors import INNER, MAGNITUDE, PREFIX, Keys, StoredFactors, sorted_keys
from lorabank.models.bases.kinds.attention import OUTPUT
from lorabank.models.bases.kinds.experts import matrices_of
from lorabank.models.bases.sites import Site, sites_in


def laid_out(files: Mapping[str, bytes], shell: nn.Module) -> dict[str, bytes]:
    """An adapter's files with the tensors in PEFT's layouts; as they are where all modules are linear layers.

    Layers that PEFT would compute otherwise are left out where their adapter is 0.

    Args:
        files: The files of a PEFT folder that lorabank made, in these layouts or by matrices.
        shell: The base model's modules; they need no memory.

    Raises:
        IncompatibleError: PEFT would compute another thing with these factors.
    """
    tensors = load_tensors(files[WEIGHTS_FILE])
    config = json.loads(files[CONFIG_FILE])
    keys = sorted_keys(WEIGHTS_FILE, tensors, config)
    odd = {site.name: site for site, _ in sites_in(shell) if site.name in keys.factors and not site.plain}
    experts, attention = _experts(shell, keys.factors), attention_of(shell, keys.factors)
    idle: set[str] = set()
    for shown, names, reason in _not_in_peft(shell, keys, odd, attention):
        if not all(_is_idle(name, keys, tensors) for name in names):
            raise _otherwise(shown, reason)
        idle.update(names)
    if idle and len(idle) < len(keys.factors):
        return laid_out(_without(idle, files, tensors, keys), shell)
    if not odd and not experts and not attention:
        return dict(files)
    ranks, alphas = dict(config["rank_pattern"]), dict(config["alpha_pattern"])
    fields: dict[str, Any] = {"rank_pattern": ranks, "alpha_pattern": alphas}
    if experts and keys.magnitude:
        raise _otherwise(next(iter(experts)), "PEFT knows no DoRA on the parameters of experts")
    for name, site in odd.items():
        module, kind = site.module, site.of_kind
        magnitude = keys.magnitude.get(name)
        stored = keys.factors[name]
        A, B = stored.A(tensors), stored.B(tensors)
        del tensors[stored.a], tensors[stored.b]
        s = scaling_of(config, name, len(A))
        made = kind.in_peft(module, A, B)
        tensors |= {f"{PREFIX}{name}.{ending}": tensor for ending, tensor in made.items()}
        if magnitude is not None:
            tensors[f"{PREFIX}{name}{MAGNITUDE}"] = kind.magnitude_in_peft(module, tensors.pop(magnitude).flatten())
        rank = len(next(iter(made.values())))
        if rank != len(A):  # groups of other sizes
            ranks[name], alphas[name] = rank, s * (rank**0.5 if config.get("use_rslora") else rank)
    if experts:
        fields |= _stack_experts(experts, keys.factors, tensors, config, fields)
    for name in attention:
        fields |= stack_attention(name, keys.factors, tensors, config, fields)
    return dict(files) | {CONFIG_FILE: with_fields(files[CONFIG_FILE], **fields), WEIGHTS_FILE: saved(tensors)}


def _not_in_peft(
    shell: nn.Module, keys: Keys, odd: Mapping[str, Site], attention: Mapping[str, nn.MultiheadAttention]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """What PEFT would compute otherwise: the name of a module, the adapted layers that cause it, and the reason."""
    for name in passed_by_kernels(shell, keys.factors):
        yield name, (name,), "in evaluation torch computes the layer around it by one kernel, which asks no adapter"
    for name, site in odd.items():
        if reason := site.of_kind.not_in_peft(site.module, gained=name in keys.magnitude):
            yield name, (name,), reason
    for stem, module in attention.items():
        names = tuple(name for name in keys.factors if name.rpartition(".")[0] == stem)
        if reason := not_in_peft(stem, module, names, gained=bool(keys.magnitude)):
            yield stem, (f"{stem}.{OUTPUT}",) if reason == TWICE else names, reason


def _is_idle(name: str, keys: Keys, tensors: Mapping[str, Tensor]) -> bool:
    """Whether an adapter changes nothing: no text reaches the image half of a model, so B is 0 there as it began."""
    return name not in keys.magnitude and not bool(keys.factors[name].B(tensors).any())


def _without(
    names: Collection[str], files: Mapping[str, bytes], tensors: Mapping[str, Tensor], keys: Keys
) -> dict[str, bytes]:
    """The files without the adapters of some layers."""
    config = json.loads(files[CONFIG_FILE])
    gone = {key for name in names for key in (keys.factors[name].a, keys.factors[name].b)}
    fields: dict[str, Any] = {"target_modules": sorted(set(config["target_modules"]) - set(names))}
    for field in ("rank_pattern", "alpha_pattern"):
        fields[field] = {name: value for name, value in config[field].items() if name not in names}
    left = {key: tensor for key, tensor in tensors.items() if key not in gone}
    return dict(files) | {CONFIG_FILE: with_fields(files[CONFIG_FILE], **fields), WEIGHTS_FILE: saved(left)}


def _experts(shell: nn.Module, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Of the adapted modules those that are matrices of experts: the experts' name to parameter to how many it has."""
    found: dict[str, dict[str, int]] = {}
    for stem in sorted({name.rpartition(".")[0].rpartition(".")[0] for name in names if name[-1:].isdecimal()}):
        try:
            module = shell.get_submodule(stem)
        except AttributeError:
            continue
        asked = {name.rpartition(".")[0] for name in names}
        own = {name: len(module.get_parameter(name)) for name in matrices_of(module) if f"{stem}.{name}" in asked}
        if own:
            found[stem] = own
    return found


def _stack_experts(
    experts: Mapping[str, Mapping[str, int]],
    factors: Mapping[str, StoredFactors],
    tensors: dict[str, Tensor],
    config: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the factors of all experts of a parameter into one pair: A expert by expert, B rank by rank.

    PEFT wraps the parameters of a module in their order there, so the last one has the shortest names. An expert
    without an adapter has zeros, one of a lower rank is filled up.

    Returns:
        The config's fields that change; the tensors are changed in place.
    """
    ranks, alphas, parameters = dict(fields["rank_pattern"]), dict(fields["alpha_pattern"]), []
    targets = set(config["target_modules"])
    for stem, own in experts.items():
        for depth, (parameter, count) in enumerate(reversed(list(own.items()))):
            name = f"{stem}.{parameter}"
            parts = {e: factors[f"{name}.{e}"] for e in range(count) if f"{name}.{e}" in factors}
            pairs = {e: (one.A(tensors), one.B(tensors)) for e, one in parts.items()}
            scaling = {e: scaling_of(config, f"{name}.{e}", len(A)) for e, (A, _) in pairs.items()}
            r, s = max(len(A) for A, _ in pairs.values()), max(scaling.values(), key=abs)
            like_A, like_B = next(iter(pairs.values()))
            A, B = like_A.new_zeros(count, r, like_A.shape[1]), like_B.new_zeros(len(like_B), r, count)
            for e, (a, b) in pairs.items():
                A[e, : len(a)], B[:, : len(a), e] = a, b * (scaling[e] / s)
            for one in parts.values():
                tensors.pop(one.a, None), tensors.pop(one.b, None)
            key = f"{PREFIX}{stem}{INNER * depth}"
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = A.flatten(0, 1), B.flatten(1)
            for e in range(count):
                targets.discard(f"{name}.{e}")
                ranks.pop(f"{name}.{e}", None), alphas.pop(f"{name}.{e}", None)
            ranks[name], alphas[name] = r, s * (r**0.5 if config.get("use_rslora") else r)
        parameters += [f"{stem}.{parameter}" for parameter in own]
    return {
        "target_modules": sorted(targets),
        "target_parameters": list(dict.fromkeys([*config.get("target_parameters", ()), *parameters])),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def _otherwise(name: str, reason: str) -> IncompatibleError:
    return IncompatibleError(
        f"PEFT would answer otherwise with the adapter on {name!r}: {reason}",
        hint="train without it: --target-modules",
        unchanged="nothing was written",
    )


def check_layout(site: Site, factors: LoraFactors, stored: tuple[int, ...], *, gained: bool) -> str | None:
    """Why factors that PEFT stored cannot be an adapter of a site; None where they are.

    Args:
        site: Of the base.
        factors: By matrices; of DoRA those that PEFT stores.
        stored: The dimensions of A in the folder behind its rank.
        gained: Whether the folder is DoRA's.
    """
    if site.plain:
        return None
    if stored != (wanted := site.of_kind.shape_in_peft(site.module)):
        return f"its lora_A reads {list(stored)}, the base's module {list(wanted)}"
    if reason := site.of_kind.not_in_peft(site.module, gained=gained):
        return f"PEFT trained another thing there: {reason}"
    if not site.holds(factors.delta(site.name)):
        return "its lora_A reads the channels of other groups, which the convolution does not"
    return None
