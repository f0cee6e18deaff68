"""PEFT folders of tuners from elsewhere, judged before PEFT builds anything of them.

As for LoRA (`lorabank.exchange.untrusted_adapter`) nothing is trusted: every field of the config must be one that PEFT
knows, with a value that a user could have set; patterns and expressions never reach PEFT, which gets the full names of
linear layers. That the tensors are exactly those of these settings PEFT's own layers say (`delta_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from lorabank.algebra.factors import DenseDelta
from lorabank.core.errors import DataError, IncompatibleError, joined
from lorabank.core.settings import examine
from lorabank.core.shelves import TUNERS
from lorabank.exchange.adapted_modules import Targets, read_targets
from lorabank.exchange.config_fields import names, refuse, refuse_field, whole_modules
from lorabank.exchange.expressions import Unreadable
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE
from lorabank.exchange.stored_factors import PREFIX, in_modules
from lorabank.exchange.tensor_names import plain_keys
from lorabank.models.bases.loading import LoadedBase, weights_of
from lorabank.models.bases.targets import adaptable_modules
from lorabank.models.tasks.heads import head_state
from lorabank.models.tuners.library import (
    UnfitError,
    delta_weights,
    known_fields,
    setting_fields,
    written_config,
)
from lorabank.models.tuners.state import TunerState

_UNCHANGED = "nothing was changed"
_MEANINGLESS = frozenset(("auto_mapping", "fan_in_fan_out", "inference_mode", "peft_version", "revision"))
_READ = frozenset(
    (
        "peft_type", "task_type", "base_model_name_or_path", "target_modules", "exclude_modules",
        "layers_to_transform", "layers_pattern", "modules_to_save",
    )
)  # fmt: skip
_ON = frozenset(("save_projection",))
"""Fields that must be on, since the tensors are incomplete otherwise."""
_SHARED = frozenset(("base_model.randlora_A", "base_model.randlora_B"))
"""Tensors of all modules together."""
_MOST = 2**24
"""The largest number of a setting: PEFT allocates by some of them."""


@dataclass(frozen=True)
class ForeignTuner:
    """An adapter of a tuner, a classifier's with its head; floats are float32.

    Attributes:
        name: The tuner's name on the shelf.
        settings: The fields of its config that a user may set.
        tensors: Its own tensors by PEFT's keys.
        head: Full parameter name to tensor of every module that was saved whole.
        modules_to_save: The modules that the config says are saved whole.
        task_type: PEFT's name, None where the config names none.
        base_model: What the config calls its base model: text, never a path to follow.
        targets: What the config says of the modules that are adapted.
        ignored: Unknown fields that were passed over.
        taken: What was taken out of the tensors' names.
        file: The name of the file with its tensors, for messages.
    """

    name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    head: dict[str, Tensor]
    modules_to_save: tuple[str, ...]
    task_type: str | None
    base_model: str
    targets: Targets
    ignored: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    file: str = WEIGHTS_FILE

    @property
    def kind(self) -> str:
        """Its ``PeftType``."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """The ``PeftType`` of a tuner on the shelf."""
    return name.partition(":")[2].upper()


def tuner_of(fields: Mapping[str, Any]) -> str | None:
    """The tuner on the shelf that a config is of; None where there is none."""
    name = f"peft:{str(fields.get('peft_type')).lower()}"
    return name if name in TUNERS.table else None


def read_foreign_tuner(fields: Mapping[str, Any], weights: bytes, name: str, *, ignore_unknown: bool) -> ForeignTuner:
    """Read the two files of a PEFT folder.

    Args:
        fields: Of ``adapter_config.json``, as `parse` gives them.
        weights: ``adapter_model.safetensors``; header and finite values are checked by the caller.
        name: The tuner's name on the shelf.
        ignore_unknown: Skip fields of the config that PEFT does not know.

    Raises:
        DataError: A field or a tensor is not one of this tuner; names it.
    """
    kind = kind_of(name)
    ignored = _check_fields(fields, kind, ignore_unknown)
    settings = {key: fields[key] for key in setting_fields(kind) if key in fields}
    if problems := examine(TUNERS.load(name), settings).problems:
        refuse(f"{CONFIG_FILE}: {joined(problems)}")
    if large := next((key for key, value in settings.items() if type(value) is int and abs(value) > _MOST), None):
        refuse_field(fields, large, f"is above {_MOST}")
    tensors, taken = plain_keys(load_tensors(weights))
    if stray := next((key for key in tensors if not key.startswith(PREFIX) and key not in _SHARED), None):
        refuse(f"{WEIGHTS_FILE}: tensor {stray[:200]!r} is neither one of {name} nor part of a declared head")
    tensors = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    head = in_modules(tensors, whole_modules(fields))
    return ForeignTuner(
        name=name,
        settings=settings,
        tensors={key: tensor for key, tensor in tensors.items() if key not in head.values()},
        head={parameter: tensors[key] for parameter, key in head.items()},
        modules_to_save=names(fields, "modules_to_save"),
        task_type=fields.get("task_type"),
        base_model=str(fields.get("base_model_name_or_path") or ""),
        targets=read_targets(fields),
        ignored=ignored,
        taken=taken,
    )


def _check_fields(fields: Mapping[str, Any], kind: str, ignore_unknown: bool) -> tuple[str, ...]:
    """Every field must be a setting, one that is read, one that means nothing here, or a feature that is off."""
    unknown, settings, known = [], setting_fields(kind), known_fields(kind)
    for field, value in fields.items():
        off = value is None or value is False or value in ({}, [])
        if off or field in settings or field in _READ | _MEANINGLESS or (field == "bias" and value == "none"):
            continue
        if field in _ON and value is True:
            continue
        if field in known:
            refuse_field(fields, field, "asks for something that is not taken", "train it without")
        if not ignore_unknown:
            refuse_field(fields, field, "is unknown", "--ignore-unknown skips unknown fields and lists them")
        unknown.append(field)
    for field in _ON & fields.keys():
        if fields[field] is not True:
            refuse_field(fields, field, "is off, so the folder lacks tensors", "save it with this field on")
    for field in ("task_type", "base_model_name_or_path"):
        if not isinstance(fields.get(field), str | None):
            refuse_field(fields, field, "is not text")
    return tuple(unknown)


def on_base(adapter: ForeignTuner, base: LoadedBase, task_type: str) -> tuple[TunerState, DenseDelta, str | None]:
    """Compare an adapter with the base model that it is to sit on.

    Returns:
        It with the full names of its modules; its delta weights; and why its config was not asked which modules are
        adapted, None where it was.

    Raises:
        IncompatibleError: It is for another task type, or adapts something other than linear layers in floats.
        DataError: Its tensors are not exactly those of its config and of the base's head.
    """
    if adapter.task_type not in (None, task_type):
        _misfit(f"it was trained for {str(adapter.task_type)[:40]!r}, this bank's tasks are {task_type}")
    if not base.head_modules and (adapter.modules_to_save or adapter.head):
        refuse(
            f"{CONFIG_FILE}: it saves whole modules ({', '.join(adapter.modules_to_save)[:80]}), and of a language "
            "model's adapter only PEFT's own tensors are taken",
            "train it without modules_to_save",
        )
    able, _, _ = adaptable_modules(base.model, base.head_modules)
    linear = [name for name, site in able.items() if type(site.module) is nn.Linear]
    modules = sorted({_module_of(key, linear) for key in adapter.tensors if key not in _SHARED})
    if not modules:
        refuse(f"{WEIGHTS_FILE}: it holds no tensor of {adapter.name}")
    unread = None
    try:
        asked = adapter.targets.among([name for name, site in able.items() if site.plain])
        if other := sorted(asked ^ set(modules)):
            refuse(f"{WEIGHTS_FILE}: {CONFIG_FILE} and the tensors do not agree about the module {other[0]!r}")
    except Unreadable as error:
        unread = str(error)
    wanted = set(head_state(base.model, base.head_modules))
    if other := sorted(adapter.head.keys() ^ wanted):
        refuse(f"{WEIGHTS_FILE}: head tensor {other[0]!r} is {'missing' if other[0] in wanted else 'too many'}")
    try:
        state = TunerState(written_config(adapter.kind, adapter.settings, modules), adapter.tensors)
    except UnfitError as error:
        raise DataError(f"{CONFIG_FILE}: PEFT refuses it: {error}", unchanged=_UNCHANGED) from error
    weight = weights_of(base)
    dense = delta_weights(state, lambda module: weight(module).cpu())  # places out of bounds would end a GPU's process
    if broken := next((name for name, delta in dense.delta.items() if not bool(delta.isfinite().all())), None):
        refuse(f"{WEIGHTS_FILE}: the delta weight of {broken!r} is not finite")
    if not any(bool(delta.any()) for delta in dense.delta.values()):
        refuse(f"{WEIGHTS_FILE}: every delta weight is zero: the adapter was never trained and changes nothing")
    return state, dense, unread


def _module_of(key: str, linear: Sequence[str]) -> str:
    """The linear layer that a tensor is of."""
    name = key.removeprefix(PREFIX)
    found = [module for module in linear if name.startswith(f"{module}.")]
    if not found:
        _misfit(f"it has the tensor {name[:120]!r}, and the base has no linear layer in floats of that name")
    return max(found, key=len)


def _misfit(reason: str) -> NoReturn:
    raise IncompatibleError(f"the adapter does not fit this bank's base model: {reason}", unchanged=_UNCHANGED)
