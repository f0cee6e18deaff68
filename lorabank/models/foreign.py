"""PEFT folders from elsewhere, judged before anything is built from them.

Trusted is nothing: a config can ask for other weights, other code or endless patterns, and a tensor file can bring
tensors that PEFT would load over the base model's own. So the config counts field by field, the set of tensors must be
exactly that of a plain LoRA adapter, with a head if it is a classifier's, and what passes is written anew in
lorabank's own form. `lorabank.models.foreign_fit` compares it with the base model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_RANK
from lorabank.core.lora import LoraFactors, lora_scaling
from lorabank.models.olora_folder import check_part, join_new, rows_of, tasks_in
from lorabank.models.peft_folder import CONFIG_FILE, PREFIX, WEIGHTS_FILE, by_pattern

_UNCHANGED = "nothing was changed"
_NAME = re.compile(r"[\w-]{1,128}(\.[\w-]{1,128}){0,63}", re.ASCII)
_FIELDS = frozenset(
    (
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora",
        "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", "r_sum",
    )
)  # fmt: skip
# They say how to train or where to look, never what the tensors mean.
_IGNORED = frozenset(
    (
        "auto_mapping", "exclude_modules", "inference_mode", "megatron_core", "peft_version", "qalora_group_size",
        "revision", "save_loranew",
    )
)  # fmt: skip
# With one of them on, the tensors mean something else than s B A on a linear module, or files are to be opened.
_FEATURES = frozenset(
    (
        "alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying", "eva_config",
        "fan_in_fan_out", "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
        "lora_bias", "lora_ga_config", "megatron_config", "monteclora_config", "runtime_config", "target_parameters",
        "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "velora_config",
    )
)  # fmt: skip
# Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ) subtract something from the base model's weights.
_INITIALISATIONS = (True, False, "gaussian", "orthogonal")
_OWN_HEADS = ("classifier", "score")  # PEFT saves them for SEQ_CLS without being asked
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ForeignAdapter:
    """A plain LoRA adapter, a classifier's with its head; tensors are float32.

    Attributes:
        factors: The adapter.
        head: Full parameter name to tensor of every module that was saved whole.
        modules_to_save: The modules that the config says are saved whole.
        task_type: PEFT's name, None where the config names none.
        base_model: What the config calls its base model: text, never a path to follow.
        r: Rank of the modules that ``rank_pattern`` does not name.
        lora_alpha: The same for the numerator of the scaling.
        use_rslora: Whether the scaling is ``lora_alpha / sqrt(r)``.
        target_modules: Endings of module names, all literal.
        rank_pattern: Full module name to a rank other than ``r``.
        alpha_pattern: Full module name to another ``lora_alpha``.
        tasks: How many tasks the folder holds: more than one only in those of O-LoRA's reference implementation.
        ignored: Unknown fields that were passed over.
    """

    factors: LoraFactors
    head: dict[str, Tensor]
    modules_to_save: tuple[str, ...]
    task_type: str | None
    base_model: str
    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    tasks: int = 1
    ignored: tuple[str, ...] = ()


def read_foreign(
    config: bytes, weights: bytes, *, part: int | None = None, ignore_unknown: bool = False
) -> ForeignAdapter:
    """Read the two files of a PEFT folder.

    Args:
        config: ``adapter_config.json``.
        weights: ``adapter_model.safetensors``; header and finite values are checked by the caller.
        part: Of several tasks in one file the number of the one that is wanted, from 1; None for their sum.
        ignore_unknown: Pass over fields of the config that no version of PEFT is known to write.

    Raises:
        DataError: A field or a tensor is not one of a plain LoRA adapter; names it.
        ConfigError: There is no such part.
    """
    fields = _parse(config)
    ignored = _check_plain(fields, ignore_unknown)
    r = _count(fields, "r", fields.get("r"))
    alpha = _number(fields, "lora_alpha", fields.get("lora_alpha"))
    _number(fields, "lora_dropout", fields.get("lora_dropout", 0.0), low=0.0, high=1.0)  # training's, and long past
    rslora = fields.get("use_rslora", False)
    if type(rslora) is not bool:
        _refuse_field(fields, "use_rslora", "is neither true nor false")
    ranks = {key: _count(fields, "rank_pattern", value) for key, value in _pattern(fields, "rank_pattern").items()}
    alphas = {key: _number(fields, "alpha_pattern", value) for key, value in _pattern(fields, "alpha_pattern").items()}
    saved = () if fields.get("modules_to_save") in (None, []) else _names(fields, "modules_to_save")
    own = _OWN_HEADS if fields.get("task_type") == "SEQ_CLS" else ()
    tensors = load_tensors(weights)
    A, B, head = _split(tensors if "r_sum" not in fields else join_new(tensors), (*own, *saved))
    tasks = 1
    if "r_sum" in fields:
        tasks = tasks_in({module: a.shape[0] for module, a in A.items()}, r, _r_sum(fields))
    if part is not None:
        check_part(part, tasks)
        rows = rows_of(part, r)
        A, B = {name: a[rows] for name, a in A.items()}, {name: b[:, rows] for name, b in B.items()}
    elif tasks > 1:
        r, alpha = r * tasks, alpha * tasks
    _check_trained(A, B)
    rank_of = {module: a.shape[0] for module, a in A.items()}
    alpha_of = {module: by_pattern(alphas, module, alpha) for module in A}
    for module, rank in rank_of.items():
        if rank != by_pattern(ranks, module, r):
            _refuse(f"{WEIGHTS_FILE}: {module!r} has rank {rank}, {CONFIG_FILE} says {by_pattern(ranks, module, r)}")
    scaling = {module: lora_scaling(rank_of[module], alpha_of[module], use_rslora=rslora) for module in A}
    return ForeignAdapter(
        factors=LoraFactors(A, B, scaling),
        head=head,
        modules_to_save=saved,
        task_type=fields.get("task_type"),
        base_model=str(fields.get("base_model_name_or_path") or ""),
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=_names(fields, "target_modules"),
        rank_pattern={module: rank for module, rank in rank_of.items() if rank != r},
        alpha_pattern={module: value for module, value in alpha_of.items() if value != alpha},
        tasks=tasks,
        ignored=ignored,
    )


def _r_sum(fields: Mapping[str, Any]) -> int:
    """The field of O-LoRA's reference implementation, which knows no patterns and no rsLoRA."""
    value = fields["r_sum"]
    if type(value) is not int or not 0 <= value <= MAX_RANK:
        _refuse_field(fields, "r_sum", f"is no rank from 0 to {MAX_RANK}")
    for name in ("rank_pattern", "alpha_pattern", "use_rslora"):
        if fields.get(name):
            _refuse_field(fields, name, "does not go with 'r_sum'")
    return value


def _parse(config: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(config.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(f"{CONFIG_FILE}: not valid JSON ({error})")
    if not isinstance(fields, dict):
        _refuse(f"{CONFIG_FILE}: not an object")
    return fields


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_plain(fields: Mapping[str, Any], ignore_unknown: bool) -> tuple[str, ...]:
    """Every field must be one that is read, one that means nothing here, or a feature that is off.

    Returns:
        Unknown fields that were passed over.
    """
    if fields.get("peft_type") != "LORA":
        _refuse_field(fields, "peft_type", "is not 'LORA'")
    unknown = []
    for name, value in fields.items():
        off = value is None or value is False or value in ({}, [])
        if name in _FIELDS | _IGNORED or off:
            continue
        if name in _FEATURES:
            _refuse_field(fields, name, "asks for something other than plain LoRA")
        if not ignore_unknown:
            _refuse_field(fields, name, "is unknown", "--ignore-unknown passes over unknown fields and lists them")
        unknown.append(name)
    if fields.get("bias", "none") != "none":
        _refuse_field(fields, "bias", "is not 'none'")
    if fields.get("init_lora_weights", True) not in _INITIALISATIONS:
        _refuse_field(fields, "init_lora_weights", "is a way to begin that changes the base model")
    for name in ("task_type", "base_model_name_or_path"):
        if not isinstance(fields.get(name), str | None):
            _refuse_field(fields, name, "is not text")
    return tuple(unknown)


def _split(
    tensors: Mapping[str, Tensor], saved: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The tensors as ``lora_A``, ``lora_B`` and head; nothing else is let in."""
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        kind = next((k for k in ("lora_A", "lora_B") if name.endswith(f".{k}.weight")), None)
        in_head = any(f".{module}." in f".{name}" for module in saved)
        if name == key or (kind is None and not in_head):
            _refuse(f"{WEIGHTS_FILE}: tensor {key[:200]!r} is neither a LoRA factor nor part of a declared head")
        if tensor.dtype not in _DTYPES:
            _refuse(f"{WEIGHTS_FILE}: tensor {key!r} is {tensor.dtype}; float32, float16 and bfloat16 are read")
        if kind is None:
            head[name] = tensor.float()
        else:
            {"lora_A": A, "lora_B": B}[kind][name.removesuffix(f".{kind}.weight")] = tensor.float()
    _check_pairs(A, B)
    return A, B, head


def _check_pairs(A: Mapping[str, Tensor], B: Mapping[str, Tensor]) -> None:
    if not A:
        _refuse(f"{WEIGHTS_FILE}: it holds no LoRA factors")
    for module in sorted(A.keys() ^ B.keys()):
        _refuse(f"{WEIGHTS_FILE}: {module!r} has lora_A or lora_B, not both")
    for module, a in A.items():
        b = B[module]
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not 1 <= a.shape[0] <= MAX_RANK:
            _refuse(
                f"{WEIGHTS_FILE}: the factors of {module!r} have the shapes {list(a.shape)} and {list(b.shape)}, "
                f"not [r, d_in] and [d_out, r] with r from 1 to {MAX_RANK}"
            )


def _check_trained(A: Mapping[str, Tensor], B: Mapping[str, Tensor]) -> None:
    if not any(bool(a.any()) and bool(B[module].any()) for module, a in A.items()):
        _refuse(f"{WEIGHTS_FILE}: every delta weight is zero: the adapter was never trained and changes nothing")


def _names(fields: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of literal module names; a pattern could run for ever, so it is never run."""
    value = fields.get(field)
    if not isinstance(value, list) or not value or not all(_is_name(name) for name in value):
        _refuse_field(fields, field, "is not a list of module names")
    return tuple(value)


def _pattern(fields: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = fields.get(field) or {}
    if not isinstance(value, dict) or not all(_is_name(name) for name in value):
        _refuse_field(fields, field, "is not an object with literal module names")
    return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _count(fields: Mapping[str, Any], field: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        _refuse_field(fields, field, f"holds no rank from 1 to {MAX_RANK}")
    return value


def _number(fields: Mapping[str, Any], field: str, value: Any, *, low: float = 1e-9, high: float = 1e9) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        _refuse_field(fields, field, "holds no number that can be used")
    return float(value)


def _refuse_field(fields: Mapping[str, Any], field: str, reason: str, hint: str | None = None) -> NoReturn:
    shown = json.dumps(fields[field])[:80] if field in fields else "missing"
    _refuse(f"{CONFIG_FILE}: field {field[:80]!r} ({shown}) {reason}", hint)


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DataError(message, hint=hint, unchanged=_UNCHANGED)
