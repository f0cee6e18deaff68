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
from lorabank.core.lora import LoraFactors, lora_scaling
from lorabank.models.peft_folder import CONFIG_FILE, PREFIX, WEIGHTS_FILE, by_pattern

MAX_RANK = 1024
_UNCHANGED = "nothing was changed"
_NAME = re.compile(r"[\w-]{1,128}(\.[\w-]{1,128}){0,63}", re.ASCII)
_FIELDS = frozenset(
    (
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora",
        "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights",
    )
)  # fmt: skip
# They say how to train or where to look, never what the tensors mean.
_IGNORED = frozenset(
    (
        "auto_mapping", "exclude_modules", "inference_mode", "megatron_core", "peft_version", "qalora_group_size",
        "revision",
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
        lora_dropout: As used while training.
        target_modules: Endings of module names, all literal.
        rank_pattern: Full module name to a rank other than ``r``.
        alpha_pattern: Full module name to another ``lora_alpha``.
    """

    factors: LoraFactors
    head: dict[str, Tensor]
    modules_to_save: tuple[str, ...]
    task_type: str | None
    base_model: str
    r: int
    lora_alpha: float
    use_rslora: bool
    lora_dropout: float
    target_modules: tuple[str, ...]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]


def read_foreign(config: bytes, weights: bytes) -> ForeignAdapter:
    """Read the two files of a PEFT folder.

    Args:
        config: ``adapter_config.json``.
        weights: ``adapter_model.safetensors``; header and finite values are checked by the caller.

    Raises:
        DataError: A field or a tensor is not one of a plain LoRA adapter; names it.
    """
    fields = _parse(config)
    _check_plain(fields)
    r = _count(fields, "r", fields.get("r"))
    alpha = _number(fields, "lora_alpha", fields.get("lora_alpha"))
    rslora = fields.get("use_rslora", False)
    if type(rslora) is not bool:
        _refuse_field(fields, "use_rslora", "is neither true nor false")
    ranks = {key: _count(fields, "rank_pattern", value) for key, value in _pattern(fields, "rank_pattern").items()}
    alphas = {key: _number(fields, "alpha_pattern", value) for key, value in _pattern(fields, "alpha_pattern").items()}
    saved = () if fields.get("modules_to_save") in (None, []) else _names(fields, "modules_to_save")
    own = _OWN_HEADS if fields.get("task_type") == "SEQ_CLS" else ()
    A, B, head = _split(load_tensors(weights), (*own, *saved))
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
        lora_dropout=_number(fields, "lora_dropout", fields.get("lora_dropout", 0.0), low=0.0, high=1.0),
        target_modules=_names(fields, "target_modules"),
        rank_pattern={module: rank for module, rank in rank_of.items() if rank != r},
        alpha_pattern={module: value for module, value in alpha_of.items() if value != alpha},
    )


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


def _check_plain(fields: Mapping[str, Any]) -> None:
    """Every field must be one that is read, one that means nothing here, or a feature that is off."""
    if fields.get("peft_type") != "LORA":
        _refuse_field(fields, "peft_type", "is not 'LORA'")
    for name, value in fields.items():
        off = value is None or value is False or value in ({}, [])
        if name not in _FIELDS | _IGNORED and not off:
            _refuse_field(fields, name, "asks for something other than plain LoRA, or is unknown")
    if fields.get("bias", "none") != "none":
        _refuse_field(fields, "bias", "is not 'none'")
    if fields.get("init_lora_weights", True) not in _INITIALISATIONS:
        _refuse_field(fields, "init_lora_weights", "is a way to begin that changes the base model")
    for name in ("task_type", "base_model_name_or_path"):
        if not isinstance(fields.get(name), str | None):
            _refuse_field(fields, name, "is not text")


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


def _refuse_field(fields: Mapping[str, Any], field: str, reason: str) -> NoReturn:
    shown = json.dumps(fields[field])[:80] if field in fields else "missing"
    _refuse(f"{CONFIG_FILE}: field {field[:80]!r} ({shown}) {reason}")


def _refuse(message: str) -> NoReturn:
    raise DataError(message, unchanged=_UNCHANGED)
