"""What plain PEFT makes of an adapter's files, found out before anybody loads them.

PEFT loads what its rules match and drops the rest with a warning at most, and its rules change: on transformers 5 it
takes every target that is named like an expert of a mixture for the fused experts, dense layers of that name included
(github.com/huggingface/peft/issues/3711). So its own functions place the tensors on the base model without weights,
and where they arrive is compared with where they belong.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers.pytorch_utils import Conv1D

from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.core.task_kinds import task_kind
from lorabank.exchange.layouts import laid_out
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE, as_parameters, scaling_of, with_fields
from lorabank.exchange.stored_factors import MAGNITUDE, OF_ATTENTION, PREFIX, sorted_keys
from lorabank.models.bases.architecture import load_config, read_config, without_weights
from lorabank.models.bases.fingerprint import config_hash
from lorabank.models.bases.quiet import quiet_transformers
from lorabank.models.bases.resolving import locate_base

if TYPE_CHECKING:
    from torch import Tensor, nn

_ADAPTER = "default"
_SHOWN = 3
_LONGEST = 300
"""Characters of what PEFT says."""
_UNCHANGED = "nothing was written"


def plain_files(files: Mapping[str, bytes], record: BaseModelRecord, labels: int) -> dict[str, bytes]:
    """The same adapter in a form that PEFT reads as it is meant.

    Modules that PEFT would drop under ``target_modules`` are named under ``target_parameters`` by their weight, which
    means the same.

    Args:
        files: The two files of a PEFT folder that lorabank made.
        record: The base model.
        labels: Outputs of a classifier's head.

    Raises:
        IncompatibleError: PEFT refuses the adapter or reads it otherwise in either form, or the base model is another.
        NotFoundError: The base model cannot be found; MissingExtraError, DataError as in `resolve_base`.
    """
    shell = _shell(record, labels)
    files = laid_out(files, shell)
    kept_transposed = {name for name, module in shell.named_modules() if isinstance(module, Conv1D)}
    # PEFT sets the field by itself, with a warning; servers may not.
    if not kept_transposed.isdisjoint(json.loads(files[CONFIG_FILE])["target_modules"]):
        files = dict(files) | {CONFIG_FILE: with_fields(files[CONFIG_FILE], fan_in_fan_out=True)}
    misread = _misread(files, shell)
    if not misread:
        return dict(files)
    other = dict(files) | {CONFIG_FILE: as_parameters(files[CONFIG_FILE], misread)}
    still = _misread(other, _shell(record, labels))
    if still:
        shown = ", ".join(still[:_SHOWN]) + (", ..." if len(still) > _SHOWN else "")
        fine = {name.rpartition(".")[2] for name in json.loads(files[CONFIG_FILE])["target_modules"]}
        fine -= {name.rpartition(".")[2] for name in still}
        raise IncompatibleError(
            f"PEFT would refuse or misread the adapter on {len(still)} modules: {shown}",
            hint=f"train without them: --target-modules {','.join(sorted(fine))}" if fine else None,
            unchanged=_UNCHANGED,
        )
    return other


def _shell(record: BaseModelRecord, labels: int) -> nn.Module:
    """The base model's modules on the meta device: shapes without weights."""
    resolved = locate_base(record)
    if config_hash(read_config(resolved.path)) != record.config_hash:
        raise IncompatibleError(
            f"base model {record.name!r} is not the one of this bank: its config.json differs",
            hint="restore the model that the bank was made with",
            unchanged=_UNCHANGED,
        )
    config = load_config(resolved)
    if task_kind(record.task_type).has_head:
        config.num_labels = labels
    return without_weights(config, record.task_type)


def _misread(files: Mapping[str, bytes], shell: nn.Module) -> tuple[str, ...]:
    """Modules whose tensors PEFT would not put where they belong, and modules that it would adapt beyond them."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load

    config, tensors = json.loads(files[CONFIG_FILE]), load(files[WEIGHTS_FILE])
    placed: dict[str, Tensor] = {}
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        try:
            model = get_peft_model(shell, LoraConfig.from_peft_type(**config), low_cpu_mem_usage=True)
            # What arrives here has passed every renaming; on the meta device nothing could be read back afterwards.
            vars(model)["load_state_dict"] = _keep(placed, model.load_state_dict)
            set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
        except Exception as error:  # PEFT raises whatever its checks raise
            raise IncompatibleError(
                f"PEFT cannot load the adapter: {' '.join(str(error).split())[:_LONGEST]}",
                hint="train on other modules: --target-modules",
                unchanged=_UNCHANGED,
            ) from error
    layers = {
        name.removeprefix(PREFIX): layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    }
    keys = sorted_keys(WEIGHTS_FILE, tensors, config)
    wrong = {
        module
        for module, own in keys.factors.items()
        if (layer := layers.get(own.module)) is None
        or getattr(layer, "parameter_name", "weight") != own.parameter(module)
        or not math.isclose(layer.scaling[_ADAPTER], scaling_of(config, module, len(own.A(tensors))))
        or not all(_arrived(placed, _placed_key(key), tensors[key]) for key in (own.a, own.b))
        or (_ADAPTER in layer.lora_magnitude_vector) != (module in keys.magnitude)
        or (module in keys.magnitude and not _magnitude_arrived(placed, module, tensors[keys.magnitude[module]]))
    }
    attention = {own.module for own in keys.factors.values() if own.block is not None}
    beyond = layers.keys() - {own.module for own in keys.factors.values()}
    beyond -= {f"{stem}{OF_ATTENTION}" for stem in attention}  # of them one is there always
    whole = {key.replace(f".modules_to_save.{_ADAPTER}.", "."): tensor for key, tensor in placed.items()}
    lost = [name for name, key in keys.head.items() if not _arrived(whole, key, tensors[key])]
    return tuple(sorted(wrong | beyond | set(lost)))


def _keep(placed: dict[str, Tensor], load: Any) -> Any:
    """``load_state_dict`` that also keeps those tensors that the model has a place for."""

    def keeping(state: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        report = load(state, *args, **options)
        placed.update({key: value for key, value in state.items() if key not in set(report.unexpected_keys)})
        return report

    return keeping


def _placed_key(key: str) -> str:
    """The name in PEFT's model of a factor that the file has under this one."""
    name = key.removesuffix(".weight")
    return f"{name}.{_ADAPTER}{key.removeprefix(name)}"


def _magnitude_arrived(placed: Mapping[str, Tensor], module: str, tensor: Tensor) -> bool:
    return _arrived(placed, f"{PREFIX}{module}{MAGNITUDE}.{_ADAPTER}.weight", tensor)


def _arrived(placed: Mapping[str, Tensor], key: str, tensor: Tensor) -> bool:
    found = placed.get(key)
    return found is not None and found.shape == tensor.shape and bool((found == tensor).all())
