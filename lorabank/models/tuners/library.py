"""The tuners of PEFT, as PEFT itself makes, trains and loads them.

A tuner here changes weights: PEFT's layer makes of every ``W [d_out, d_in]`` another matrix, and an adapter stands for
the difference, a delta weight of full rank. It is found by PEFT's own ``merge`` on copies of the weights, so no
equation of a tuner is written a second time. No other file of lorabank trains or loads an adapter through PEFT.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import lru_cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import DenseDelta
from lorabank.core.errors import DataError
from lorabank.models.tuners.state import TunerState

Settings = Mapping[str, Any]
"""Fields of a tuner's config: name to value."""

_CHOSEN = frozenset(
    (
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "modules_to_save", "bias", "fan_in_fan_out", "save_projection", "use_effective_conv2d",
    )
)  # fmt: skip
"""Fields that lorabank fills in by itself, or that mean nothing on linear layers."""

_LONGEST = 300
"""Characters of what PEFT says."""


class UnfitError(Exception):
    """PEFT refuses settings or tensors; the message is what PEFT says."""


def setting_fields(kind: str) -> dict[str, tuple[Any, Any, str]]:
    """The fields of a tuner's config that a user may set: name to type, default and help.

    Args:
        kind: Its ``PeftType``, such as ``"LOHA"``.
    """
    config, found = _config(kind), {}
    hints = get_type_hints(config)
    for field in fields(config):
        if field.name in _CHOSEN or field.default is MISSING or not _is_plain(hints[field.name]):
            continue
        said = field.metadata.get("help", "")
        said = said if isinstance(said, str) else " ".join(said)  # PEFT has a comma too many here and there
        found[field.name] = hints[field.name], field.default, " ".join(said.split())
    return found


def known_fields(kind: str) -> frozenset[str]:
    """All fields of a tuner's config."""
    return frozenset(field.name for field in fields(_config(kind)))


@lru_cache(maxsize=256)
def trained_numbers(kind: str, settings: tuple[tuple[str, Any], ...], d_out: int, d_in: int) -> int:
    """How many numbers a tuner trains of a weight.

    Args:
        kind: Its ``PeftType``.
        settings: Its settings with their names.
        d_out: Rows of the weight.
        d_in: Columns.

    Raises:
        UnfitError: The settings do not fit the shape.
    """
    fields = {**dict(settings), "target_modules": ["layer"]}
    try:
        model = _wrapped(_box({"layer": torch.empty(d_out, d_in, device="meta")}), kind, fields, empty=True)
    except UnfitError:  # or a tuner that draws places, which takes memory
        model = _wrapped(_box({"layer": torch.zeros(d_out, d_in)}), kind, fields)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def put_on(model: nn.Module, kind: str, settings: Settings, modules: list[str]) -> Callable[[], TunerState]:
    """Put the layers of a tuner on a model, in place; they and what was trained before are trained then.

    Args:
        model: Its modules are replaced.
        kind: The tuner's ``PeftType``.
        settings: Its settings.
        modules: Full names of linear layers.

    Returns:
        Gives the adapter as it is now.

    Raises:
        UnfitError: The settings do not fit.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped = _wrapped(model, kind, {**settings, "target_modules": modules})
    for parameter in trained:
        parameter.requires_grad_(True)

    def state() -> TunerState:
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        return TunerState(written(wrapped.peft_config["default"]), {k: _still(v) for k, v in tensors.items()})

    return state


def delta_weights(state: TunerState, weight: Callable[[str], Tensor]) -> DenseDelta:
    """The delta weights of an adapter, ``[d_out, d_in]`` in float32 where the weights are.

    Args:
        state: The adapter.
        weight: Module name to the untouched base's weight ``[d_out, d_in]``.

    Raises:
        DataError: The tensors are not exactly those of the config.
    """
    from peft import set_peft_model_state_dict

    kind = state.config["peft_type"]
    weights = {name: weight(name).detach().float() for name in state.config["target_modules"]}
    kept = {name: value for name, value in state.config.items() if name in setting_fields(kind)}
    try:
        model = _wrapped(_box(weights), kind, {**kept, "target_modules": list(weights)})
        with _quiet():
            report: Any = set_peft_model_state_dict(model, dict(state.tensors))
        delta = _merged(model, weights)
    except (UnfitError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"PEFT cannot load the adapter: {_said(error)}", unchanged="nothing was changed") from error
    lacking = [key for key in report.missing_keys if ".base_layer." not in key]
    for said, keys in (("lacks", lacking), ("has, and PEFT does not know,", report.unexpected_keys)):
        if keys:
            raise DataError(f"the adapter {said} the tensor {keys[0][:200]!r}", unchanged="nothing was changed")
    return DenseDelta(delta)


@torch.no_grad()
def _merged(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What PEFT's merge adds to each weight."""
    delta = {}
    with _quiet():
        for name, before in weights.items():
            layer = model.base_model.model.get_submodule(name)
            layer.merge()
            delta[name] = layer.get_base_layer().weight.detach() - before
    return delta


def written(config: Any) -> dict[str, Any]:
    """A config of PEFT as JSON values, without the version that wrote it."""
    found = {name: _json(value) for name, value in config.to_dict().items()}
    found.pop("peft_version", None)
    return found


def written_config(kind: str, settings: Settings, modules: list[str]) -> dict[str, Any]:
    """A tuner's config of some settings as JSON values, before layers are made.

    Raises:
        UnfitError: PEFT refuses them.
    """
    try:
        with _quiet():
            return written(_config(kind)(**settings, target_modules=modules))
    except (TypeError, ValueError) as error:
        raise UnfitError(_said(error)) from error


def _config(kind: str) -> Any:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]


def _wrapped(model: nn.Module, kind: str, fields: Settings, *, empty: bool = False) -> Any:
    """PEFT's model around another one, with new layers; on a GPU they lie where the weights do."""
    from peft import get_peft_model

    try:
        with _quiet():
            return get_peft_model(model, _config(kind)(**fields), low_cpu_mem_usage=empty)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnfitError(_said(error)) from error


def _box(weights: Mapping[str, Tensor]) -> nn.Module:
    """Linear layers without biases under their full names, over copies of the weights."""
    box = nn.Module()
    for name, weight in weights.items():
        *path, last = name.split(".")
        inside = box
        for part in path:
            if part not in dict(inside.named_children()):
                inside.add_module(part, nn.Module())
            inside = inside.get_submodule(part)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        inside.add_module(last, layer)
    return box


def _is_plain(hint: Any) -> bool:
    """Whether values of a type are numbers, words or None."""
    if get_origin(hint) is Literal or hint in (int, float, bool, str, NoneType):
        return True
    return bool(get_args(hint)) and get_origin(hint) not in (list, dict) and all(map(_is_plain, get_args(hint)))


def _json(value: Any) -> Any:
    if isinstance(value, set | frozenset | list | tuple):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    return getattr(value, "value", value)


def _still(tensor: Tensor) -> Tensor:
    still = tensor.detach().cpu().contiguous().clone()
    return still.float() if still.is_floating_point() else still


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST].rstrip(".") or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
