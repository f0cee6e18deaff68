"""PEFT's folder format, in and out: ``adapter_config.json`` and ``adapter_model.safetensors``.

What is written loads with plain ``PeftModel.from_pretrained`` and with servers that read PEFT folders; the config is
built from a fixed list of fields. An adapter with row gains is written as DoRA, and its gains stand beside it, in a
file that PEFT does not look at: DoRA's magnitudes are gains only beside the base's weights. What is added to biases
stands in such a file too, since PEFT puts whole biases in the place of the base's. What is read here was written here;
`lorabank.exchange.untrusted_adapter` reads the folders of others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.algebra.biases import ENDING, bias_shape, bias_vectors, no_change, with_biases, without_biases
from lorabank.algebra.factors import FactorShape, LoraFactors, lora_scaling
from lorabank.algebra.stack import AdapterStack
from lorabank.core.commands import VERIFY
from lorabank.core.errors import DataError, IncompatibleError, leaving
from lorabank.exchange.dora import Weight, as_dora
from lorabank.exchange.mapped import MappedTensors
from lorabank.exchange.stored_factors import INNER, MAGNITUDE, PREFIX, Keys, by_pattern, sorted_keys

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
GAIN_FILE = "gain.safetensors"
"""The row gain ``[d_out]`` of every module by its name, where PEFT's two files are a DoRA adapter."""

BIAS_FILE = "bias.safetensors"
"""What is added to each bias ``[d_out]`` by its name, where PEFT's two files bring whole biases."""

_stored = leaving("nothing was changed", commands=[VERIFY], kinds=(DataError,))


def adapter_files(
    factors: LoraFactors,
    head: Mapping[str, Tensor],
    *,
    base_model: str,
    task_type: str,
    r: int,
    lora_alpha: float,
    use_rslora: bool,
    head_modules: Sequence[str],
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    weight: Weight | None = None,
) -> dict[str, bytes]:
    """File name to bytes of an adapter whose scaling follows from ``lora_alpha`` and ``r``.

    Args:
        factors: The adapter; its ``scaling`` must be what the settings give.
        head: Full parameter name to tensor of the modules stored whole.
        base_model: Hub id or path of the base, as PEFT writes it.
        task_type: PEFT's ``TaskType`` name.
        r: Rank.
        lora_alpha: Numerator of the scaling.
        use_rslora: Whether the scaling is ``lora_alpha / sqrt(r)``.
        head_modules: Modules that PEFT must save and load whole.
        rank_pattern: Module name to its rank where that is not ``r``; None for the ranks of the factors, with the
            ``lora_alpha`` that gives them the same scaling (an adapter on several blocks of one matrix).
        alpha_pattern: Module name to its ``lora_alpha`` where that is another one.
        weight: Gives the untouched base's weights; asked only for an adapter with row gains or on biases.

    Raises:
        IncompatibleError: No DoRA adapter has these gains, or the adapter is on biases of layer norms alone.
    """
    biases = bias_vectors(factors)
    factors = _for_peft(factors, weight, lora_scaling(r, lora_alpha, use_rslora=use_rslora))
    if rank_pattern is None:
        ranks, power = {len(a) for a in factors.A.values()}, 0.5 if use_rslora else 1.0
        if len(ranks) == 1:  # a server that knows one rank for all modules reads it
            (rank,) = ranks
            r, lora_alpha = rank, lora_alpha * (rank / r) ** power
        rank_pattern = {module: len(a) for module, a in factors.A.items() if len(a) != r}
        alpha_pattern = {module: lora_alpha * (rank / r) ** power for module, rank in rank_pattern.items()}
    config = _config(base_model, task_type, sorted(factors.A), head_modules) | {
        "r": r,
        "lora_alpha": int(lora_alpha) if float(lora_alpha).is_integer() else lora_alpha,
        "use_rslora": use_rslora,
        "rank_pattern": dict(rank_pattern),
        "alpha_pattern": dict(alpha_pattern or {}),
    }
    return _files(config, factors, biases, head, weight)


def combined_files(
    factors: LoraFactors,
    head: Mapping[str, Tensor],
    *,
    base_model: str,
    task_type: str | None,
    head_modules: Sequence[str],
    weight: Weight | None = None,
) -> dict[str, bytes]:
    """File name to bytes of an adapter with s = 1 and any rank per module (``rank_pattern``).

    Args:
        factors: At least one module, as `AdapterStack.combine` or `compress` make it.
        head: Full parameter name to tensor of the modules stored whole.
        base_model: Hub id or path of the base, as PEFT writes it.
        task_type: PEFT's ``TaskType`` name; None for a classifier's adapter without a head, as PEFT would look for
            one.
        head_modules: Modules that PEFT must save and load whole.
        weight: As for `adapter_files`.

    Raises:
        IncompatibleError: As for `adapter_files`.
    """
    biases, factors = bias_vectors(factors), _for_peft(factors, weight, 1.0)
    ranks = {module: a.shape[0] for module, a in factors.A.items()}
    most = max(ranks.values(), default=1)
    other = {module: rank for module, rank in ranks.items() if rank != most}
    config = _config(base_model, task_type, sorted(factors.A), head_modules) | {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": other,
        "alpha_pattern": other,
    }
    return _files(config, factors, biases, head, weight)


def has_files(folder: Path) -> bool:
    """Whether an adapter's two files are in a folder."""
    return all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))


def read_adapter(folder: Path) -> tuple[LoraFactors, dict[str, Tensor], dict[str, Any]]:
    """An adapter folder's factors, head tensors by full parameter name, and config.

    Raises:
        DataError: If a key is neither a LoRA factor nor part of a saved module, or a factor lacks its partner.
    """
    factors, head = read_factors(folder), read_head(folder)
    return factors, head, json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))


@_stored
def read_stack(folders: Mapping[str, Path], *, device: torch.device | str, dtype: torch.dtype) -> AdapterStack:
    """Adapter folders straight into one stack.

    The headers say how much room is needed; it is allocated once, and every tensor is copied once, out of the mapped
    file into its place. The last adapter so costs what the first does, and nothing lies in memory twice.

    Args:
        folders: Adapter to its folder, in the stack's order.
        device: Where the stack lies.
        dtype: Of its factors.

    Raises:
        DataError: As for `read_adapter`.
    """
    files = [MappedTensors(folder / WEIGHTS_FILE) for folder in folders.values()]
    keys = [_keys(folder, file) for folder, file in zip(folders.values(), files, strict=True)]
    shapes = map(_shapes, folders.values(), files, keys)
    stack = AdapterStack.reserve(dict(zip(folders, shapes, strict=True)), device=device, dtype=dtype)
    row = dict.fromkeys(stack.modules, 0)
    for folder, file, own in zip(folders.values(), files, keys, strict=True):
        tensors, gains = file.map(), _gains(folder, own)
        for module, stored in own.factors.items():
            gain, A, B = gains.get(module), stored.A(tensors), stored.B(tensors)
            B = B if gain is None else _multiplied(B, gain)
            row[module] += stack.modules[module].put(row[module], A, B, gain)
        for module, vector in _biases(folder, own).items():
            row[module] += stack.modules[module].put(row[module], vector.new_ones(1, 1), vector.unsqueeze(1))
    return stack


@_stored
def read_shapes(folder: Path) -> dict[str, FactorShape]:
    """Module to what its factors need, from the config and the header alone.

    Raises:
        DataError: As for `read_adapter`.
    """
    file = MappedTensors(folder / WEIGHTS_FILE)
    return _shapes(folder, file, _keys(folder, file))


@_stored
def read_factors(folder: Path) -> LoraFactors:
    """The factors alone, in the mapped file; the head is left where it is.

    Raises:
        DataError: As for `read_adapter`.
    """
    file = MappedTensors(folder / WEIGHTS_FILE)
    keys = _keys(folder, file)
    shapes = _shapes(folder, file, keys)
    tensors = file.map()
    A = {module: own.A(tensors) for module, own in keys.factors.items()}
    B = {module: own.B(tensors) for module, own in keys.factors.items()}
    scaling = {module: shapes[module].scaling for module in A}
    return with_biases(_gained(A, B, scaling, _gains(folder, keys)), _biases(folder, keys))


@_stored
def read_head(folder: Path) -> dict[str, Tensor]:
    """The tensors of the modules stored whole, by full parameter name; the factors are left where they are."""
    file = MappedTensors(folder / WEIGHTS_FILE)
    tensors = file.map()
    return {name: tensors[key].clone() for name, key in _keys(folder, file).head.items()}


def _keys(folder: Path, file: MappedTensors) -> Keys:
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return sorted_keys(folder / WEIGHTS_FILE, file.entries, config)


def _gains(folder: Path, keys: Keys) -> Mapping[str, Tensor]:
    """The row gains of a folder, none where it holds no DoRA adapter."""
    if not keys.magnitude:
        return {}
    gains = MappedTensors(folder / GAIN_FILE).map()
    if gains.keys() != keys.magnitude.keys():
        raise DataError(f"{folder / GAIN_FILE}: the gains do not cover all modules")
    return gains


def _biases(folder: Path, keys: Keys) -> Mapping[str, Tensor]:
    """What a folder adds to biases, nothing where it brings none."""
    if not keys.bias:
        return {}
    vectors = MappedTensors(folder / BIAS_FILE).map()
    if vectors.keys() != keys.bias.keys():
        raise DataError(f"{folder / BIAS_FILE}: the vectors do not cover all biases")
    return vectors


def _gained(
    A: Mapping[str, Tensor], B: Mapping[str, Tensor], scaling: Mapping[str, float], gains: Mapping[str, Tensor]
) -> LoraFactors:
    """The adapter of DoRA's factors, whose B lacks the gain that belongs to its rows."""
    return LoraFactors(A, {name: _multiplied(b, gains[name]) for name, b in B.items()} if gains else B, scaling, gains)


def _multiplied(b: Tensor, gain: Tensor) -> Tensor:
    return b * gain.unsqueeze(1)


def _shapes(folder: Path, file: MappedTensors, keys: Keys) -> dict[str, FactorShape]:
    """Module to what its factors need, from the config and the header alone."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    shapes = {}
    for module, own in keys.factors.items():
        rows, *window = file.entries[own.a].shape
        (r, d_out), d_in = own.sizes(rows, file.entries[own.b].shape[0]), math.prod(window)
        shapes[module] = FactorShape(r, d_in, d_out, scaling_of(config, module, r), module in keys.magnitude)
    return shapes | {name: bias_shape(file.entries[key].shape[0]) for name, key in keys.bias.items()}


def with_fields(config: bytes, **fields: Any) -> bytes:
    """``adapter_config.json`` with other values in some fields."""
    return _written(json.loads(config) | fields)


def as_parameters(config: bytes, modules: Collection[str]) -> bytes:
    """``adapter_config.json`` with some target modules named by their weight, a parameter; it means the same."""
    fields = json.loads(config)
    targets = fields["target_modules"]

    def renamed(pattern: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{name}.weight" if name in modules else name: value for name, value in pattern.items()}

    return with_fields(
        config,
        target_modules=[name for name in targets if name not in modules],
        target_parameters=fields.get("target_parameters", [])
        + [f"{name}.weight" for name in targets if name in modules],
        rank_pattern=renamed(fields["rank_pattern"]),
        alpha_pattern=renamed(fields["alpha_pattern"]),
    )


def _written(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _config(
    base_model: str, task_type: str | None, target_modules: Sequence[str], head_modules: Sequence[str]
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "target_modules": list(target_modules),
        "modules_to_save": list(head_modules) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _for_peft(factors: LoraFactors, weight: Weight | None, scaling: float) -> LoraFactors:
    """The adapter on weights; where it is on biases alone, one that changes nothing, as PEFT loads none without."""
    plain, names = without_biases(factors), sorted(name for name in factors.A if name.endswith(ENDING))
    if not names or weight is None:
        return plain
    some = [module for module, A in plain.A.items() if module in plain.gain or bool(A.any())]
    if some:
        return LoraFactors({m: plain.A[m] for m in some}, {m: plain.B[m] for m in some}, plain.scaling, plain.gain)
    for name in names:
        module = name.removesuffix(ENDING)
        try:
            A, B = no_change(weight(module))
        except IncompatibleError:  # a layer norm has no matrix
            continue
        return LoraFactors({module: A}, {module: B}, {module: scaling})
    raise IncompatibleError(
        "PEFT loads biases beside an adapted linear layer alone, and the adapter is on those of layer norms",
        unchanged="nothing was written",
    )


def _files(
    config: Mapping[str, Any],
    factors: LoraFactors,
    biases: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    weight: Weight | None,
) -> dict[str, bytes]:
    tensors, beside = {}, {}
    if biases and weight is None:
        raise ValueError("an adapter on biases is written beside the base's biases")
    if factors.gain:
        if weight is None:
            raise ValueError("an adapter with a row gain is written beside the base's weights")
        gain = {name: factors.gain.get(name, torch.ones(len(b))) for name, b in factors.B.items()}
        factors, magnitude = as_dora(factors, weight)
        config = {**config, "use_dora": True}
        tensors = {f"{PREFIX}{module}{MAGNITUDE}": m for module, m in magnitude.items()}
        beside = {GAIN_FILE: saved(gain)}
    if biases and weight is not None:
        config = {**config, "bias": "all"}
        inner = {name: INNER if name.removesuffix(ENDING) in factors.A else "" for name in biases}
        tensors |= {
            f"{PREFIX}{name.removesuffix(ENDING)}{inner[name]}{ENDING}": weight(name).squeeze(1).to(vector) + vector
            for name, vector in biases.items()
        }
        beside[BIAS_FILE] = saved(biases)
    tensors |= {f"{PREFIX}{module}.lora_A.weight": a for module, a in factors.A.items()}
    tensors |= {f"{PREFIX}{module}.lora_B.weight": b for module, b in factors.B.items()}
    tensors |= {f"{PREFIX}{name}": value for name, value in head.items()}
    return {CONFIG_FILE: _written(config), WEIGHTS_FILE: saved(tensors)} | beside


def saved(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors, in the order of their names."""
    still = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    data: bytes = save_tensors(still, metadata={"format": "pt"})
    return data


def scaling_of(config: Mapping[str, Any], module: str, r: int) -> float:
    """The factor before ``B A`` of a module of rank r, by the config of a folder that lorabank wrote."""
    names = (f"{module}.weight", module.rpartition(".")[0])  # a weight as a parameter, and that of an expert
    name = next((name for name in names if name in config.get("target_parameters", ())), module)
    alpha = by_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    return lora_scaling(r, alpha, use_rslora=bool(config.get("use_rslora")))
