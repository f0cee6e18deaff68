"""What a base model was made for and what it can be used for, read from its config.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabank.core.errors import DataError, IncompatibleError
from lorabank.core.shelves import TASK_TYPES
from lorabank.core.task_kinds import task_kind
from lorabank.models.bases.fingerprint import read_json
from lorabank.models.bases.quiet import first_line, quiet_transformers
from lorabank.models.bases.resolving import ResolvedBase
from lorabank.models.bases.supported import UNSUPPORTED

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_CLASSIFIERS = ("Classification", "QuestionAnswering", "MultipleChoice")


def infer_task_type(resolved: ResolvedBase) -> str:
    """PEFT's name of the task type that a base model was made for.

    That of language models for a causal one, that of encoder-decoders for one of them; the first task type on the
    shelf, classification, for everything else: classifiers, encoders, and bodies without a language model's head.

    Raises:
        DataError: config.json is missing or broken.
        IncompatibleError: It asks for remote code, or transformers does not know the model.
    """
    read_config(resolved.path)
    return made_for(load_config(resolved))


def made_for(config: PreTrainedConfig) -> str:
    """As `infer_task_type`, of a config that is loaded."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = config.architectures or []
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    named = any(name == causal or name.endswith("ForCausalLM") for name in classes)
    if not any(name.endswith(_CLASSIFIERS) for name in classes):
        for kind in map(task_kind, able_to(config)):
            if kind.generates and (named or not kind.glued):
                return kind.name
    return next(iter(TASK_TYPES))


def able_to(config: PreTrainedConfig) -> tuple[str, ...]:
    """The task types that transformers has a class for; an encoder is not a causal language model."""
    from transformers.models.auto import modeling_auto as auto

    both = bool(config.is_encoder_decoder)
    masked = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    able = []
    for kind in map(task_kind, TASK_TYPES):
        answers = both != kind.glued and not (kind.glued and masked)
        if type(config) in getattr(auto, kind.auto_class)._model_mapping and (answers or not kind.generates):
            able.append(kind.name)
    return tuple(able)


def check_able(config: PreTrainedConfig, task_type: str, name: str) -> None:
    """Refuse a task type that the base model has no class for, or whose class is not supported.

    Raises:
        IncompatibleError: Naming what it can do.
    """
    able = able_to(config)
    if task_type not in able:
        can = f"can be used for {' and '.join(able)}, not for" if able else "cannot be used for"
        raise IncompatibleError(
            f"base model {name!r} (type {config.model_type!r}) {can} {task_type}",
            hint=f"use --task-type {able[0]}" if able else "choose another model: --base",
            unchanged="nothing was changed",
        )
    if (reason := UNSUPPORTED.get((config.model_type, task_type))) is not None:
        raise IncompatibleError(
            f"base model {name!r} (type {config.model_type!r}) cannot be used for {task_type}: {reason}",
            hint="choose another model: --base",
            unchanged="nothing was changed",
        )


def without_weights(config: PreTrainedConfig, task_type: str) -> PreTrainedModel:
    """The model's modules on the meta device: shapes, no memory."""
    import torch
    import transformers

    with quiet_transformers(), torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, task_kind(task_type).auto_class).from_config(config)
    return model


def check_quantisable(config: PreTrainedConfig, task_type: str, name: str) -> None:
    """Refuse a base whose experts would stay floats: they lie in stacked parameters, not in linear layers.

    Raises:
        IncompatibleError: It has such experts.
    """
    from lorabank.models.bases.kinds.experts import matrices_of

    experts = [where for where, module in without_weights(config, task_type).named_modules() if matrices_of(module)]
    if experts:
        raise IncompatibleError(
            f"base model {name!r} cannot be quantised: its experts, such as {experts[0]}, would stay floats",
            hint="leave out --quantise",
            unchanged="nothing was changed",
        )


def load_config(resolved: ResolvedBase) -> PreTrainedConfig:
    """The config as transformers understands it; `read_config` has looked at the file before.

    Raises:
        IncompatibleError: transformers does not know the model, or refuses a value.
    """
    from transformers import AutoConfig, PreTrainedConfig

    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # unknown model types and checks of single fields raise different things
            raise IncompatibleError(f"base model {resolved.name!r}: {first_line(error)}") from error
    assert isinstance(config, PreTrainedConfig)
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json; refused when it, or the tokenizer's, could make transformers run code from elsewhere.

    Raises:
        DataError: There is none, it is broken, or the folder holds an adapter.
        IncompatibleError: It asks for remote code.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists():  # transformers would follow it to another base model
        raise DataError(
            f"{folder} holds an adapter, not a base model",
            hint="give --base the model that the adapter was trained on",
            unchanged="nothing was changed",
        )
    if not path.is_file():
        files = sorted(file.name for file in folder.glob("*.gguf"))
        raise DataError(
            f"{folder} is not a model folder: it holds no config.json",
            hint=f"--base {folder} --gguf-file {files[0]}" if files else None,
            unchanged="nothing was changed",
        )
    config = read_json(path)
    _refuse_code(config, path)
    if (tokenizer := folder / "tokenizer_config.json").is_file():
        _refuse_code(read_json(tokenizer), tokenizer)
    return config


def _refuse_code(settings: Any, path: Path) -> None:
    """Refuse keys that make transformers import code: ``auto_map``, or attention kernels named by a hub id."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            kernel = key.lstrip("_").startswith("attn_implementation") and isinstance(value, str | dict)
            if key == "auto_map" or kernel:
                raise IncompatibleError(f"{path}: {key!r} asks for code from elsewhere, which is never run")
            _refuse_code(value, path)
    elif isinstance(settings, list):
        for value in settings:
            _refuse_code(value, path)
