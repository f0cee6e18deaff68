"""The fields of a stranger's ``adapter_config.json``, each judged before it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_RANK
from lorabank.core.shelves import TASK_TYPES
from lorabank.core.task_kinds import task_kind
from lorabank.exchange.peft_folder import CONFIG_FILE
from lorabank.models.tuners.hydra import HYDRA

_UNCHANGED = "nothing was changed"
_NAME = re.compile(r"[\w-]{1,128}(\.[\w-]{1,128}){0,63}", re.ASCII)
_FIELDS = frozenset(
    (
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora",
        "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", "r_sum",
        "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters", "use_dora",
    )
)  # fmt: skip
# They say how to train, where to look or what the base shows by itself (fan_in_fan_out: how it keeps its weights),
# never what the tensors mean.
_IGNORED = frozenset(
    (
        "auto_mapping", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_version", "qalora_group_size",
        "revision", "save_loranew",
    )
)  # fmt: skip
# With one of them on, the tensors mean something else than s B A on a linear module, or files are to be opened.
_FEATURES = frozenset(
    (
        "alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying", "eva_config",
        "kasa_config", "layer_replication", "loftq_config", "lora_bias", "lora_ga_config",
        "megatron_config", "monteclora_config", "runtime_config", "trainable_token_indices", "use_bdlora",
        "use_qalora", "velora_config",
    )
)  # fmt: skip
BIASES = ("none", "lora_only", "all")
"""Which biases PEFT saves."""
_HEADS = ("classifier", "score")
_HINTS = {
    "trainable_token_indices": "train it without new tokens: a bank keeps only LoRA factors",
}
# Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ) subtract something from the base model's weights.
_INITIALISATIONS = (True, False, "gaussian", "orthogonal")


def parse(config: bytes) -> dict[str, Any]:
    """The fields of a config.

    Raises:
        DataError: It is not a JSON object, or a key stands twice.
    """
    try:
        fields = json.loads(config.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        refuse(f"{CONFIG_FILE}: not valid JSON ({error})")
    if not isinstance(fields, dict):
        refuse(f"{CONFIG_FILE}: not an object")
    return fields


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def check_plain(fields: Mapping[str, Any], ignore_unknown: bool) -> tuple[str, ...]:
    """Every field must be one that is read, one that means nothing here, or a feature that is off.

    Returns:
        Unknown fields that were passed over.
    """
    if fields.get("peft_type") == HYDRA:
        hint = "take the whole bank, by backup or push and pull, or train the task with --variant hydralora"
        refuse_field(fields, "peft_type", "is lorabank's own and stays in its bank", hint)
    if fields.get("peft_type") != "LORA":
        refuse_field(fields, "peft_type", "is not 'LORA'")
    unknown = []
    for name, value in fields.items():
        off = value is None or value is False or value in ({}, [])
        if name in _FIELDS | _IGNORED or off:
            continue
        if name in _FEATURES:
            refuse_field(fields, name, "asks for something other than plain LoRA", _HINTS.get(name))
        if not ignore_unknown:
            refuse_field(fields, name, "is unknown", "--ignore-unknown skips unknown fields and lists them")
        unknown.append(name)
    if fields.get("bias", "none") not in BIASES:
        refuse_field(fields, "bias", f"is none of {', '.join(map(repr, BIASES))}")
    if fields.get("init_lora_weights", True) not in _INITIALISATIONS:
        refuse_field(fields, "init_lora_weights", "is an initialisation that changes the base model")
    for name in ("task_type", "base_model_name_or_path"):
        if not isinstance(fields.get(name), str | None):
            refuse_field(fields, name, "is not text")
    return tuple(unknown)


def names(fields: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of literal module names; none where the field is off."""
    value = fields.get(field)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(is_name(name) for name in value):
        refuse_field(fields, field, "is not a list of module names")
    return tuple(value)


def whole_modules(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules that PEFT saves whole: those that the config names, and a classifier's head without being asked."""
    task_type = fields.get("task_type")
    own = _HEADS if task_type in TASK_TYPES and task_kind(str(task_type)).has_head else ()
    return (*own, *names(fields, "modules_to_save"))


def is_name(value: Any) -> bool:
    """Whether it is a module's name or an ending of one."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def count(fields: Mapping[str, Any], field: str, value: Any) -> int:
    """A rank."""
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        refuse_field(fields, field, f"does not hold a rank from 1 to {MAX_RANK}")
    return value


def number(fields: Mapping[str, Any], field: str, value: Any, *, low: float = 1e-9, high: float = 1e9) -> float:
    """A number between two others."""
    if type(value) not in (int, float) or not low <= value <= high:
        refuse_field(fields, field, "does not hold a usable number")
    return float(value)


def refuse_field(fields: Mapping[str, Any], field: str, reason: str, hint: str | None = None) -> NoReturn:
    """Refuse a field by its name and value."""
    shown = json.dumps(fields[field])[:80] if field in fields else "missing"
    refuse(f"{CONFIG_FILE}: field {field[:80]!r} ({shown}) {reason}", hint)


def refuse(message: str, hint: str | None = None) -> NoReturn:
    """Refuse the folder."""
    raise DataError(message, hint=hint, unchanged=_UNCHANGED)
