"""Base models: describe them from their files, load them for use, and say where adapters go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorabank.core.errors import ConfigError, DataError, IncompatibleError, MissingExtraError
from lorabank.core.records import BaseModelRecord
from lorabank.models.fingerprint import chat_template_hash, config_hash, read_json, tokenizer_hash, weight_facts
from lorabank.models.resolving import ResolvedBase, first_line, locate_base, resolve_base
from lorabank.models.targets import resolve_target_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LoadedBase",
    "ResolvedBase",
    "describe_base",
    "load_base",
    "load_tokenizer",
    "resolve_base",
    "resolve_device",
    "resolve_dtype",
    "resolve_target_modules",
]


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory, frozen and in eval mode.

    Attributes:
        model: The sequence classifier; its head is a placeholder until ``put_head`` or ``switch_heads``.
        tokenizer: Its tokenizer, with a pad token, padding on the right.
        head_modules: Smallest module names that hold every weight the base does not bring: the task's head.
        max_length: Most tokens of a text, None where the model sets no limit.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head_modules: tuple[str, ...]
    max_length: int | None


def describe_base(resolved: ResolvedBase, task_type: str = "SEQ_CLS") -> BaseModelRecord:
    """Describe a base model from its files; no model is built.

    Args:
        resolved: Where the files lie.
        task_type: PEFT's name of the task type; ``"SEQ_CLS"``.

    Raises:
        DataError: A file is missing or broken.
        IncompatibleError: The model needs remote code, or transformers has no classifier for it.
    """
    if task_type != "SEQ_CLS":
        raise ConfigError(f"task type {task_type!r} is not known; there is SEQ_CLS")
    config = read_config(resolved.path)
    hidden_size = _hidden_size(resolved)
    weights = weight_facts(resolved.path)
    return BaseModelRecord(
        name=resolved.name,
        source=resolved.source,
        revision=resolved.revision,
        config_hash=config_hash(config),
        fingerprint=weights.fingerprint,
        tokenizer_hash=tokenizer_hash(resolved.path),
        chat_template_hash=chat_template_hash(resolved.path),
        dtype=weights.dtype,
        quantisation=(config.get("quantization_config") or {}).get("quant_method"),
        task_type=task_type,
        hidden_size=hidden_size,
        parameters=weights.parameters,
    )


def load_base(
    record: BaseModelRecord,
    *,
    num_labels: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "float32",
) -> LoadedBase:
    """Load a bank's base model as a sequence classifier, after checking that it is the recorded one.

    Nothing is fetched beyond what ``resolve_base`` fetches, no remote code runs, only safetensors are read, and
    the global random state is left as it was.

    Args:
        record: The bank's base model.
        num_labels: Outputs of the placeholder head.
        device: A torch device, or a name for ``resolve_device``.
        dtype: A torch dtype, or a name for ``resolve_dtype``.

    Raises:
        IncompatibleError: The files are not the recorded ones, or hold no weights for a part of the body.
        NotFoundError: The model cannot be found; MissingExtraError, DataError as in ``resolve_base``.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    resolved = locate_base(record)
    _check_same(record, describe_base(resolved, record.task_type))
    device = resolve_device(device) if isinstance(device, str) else device
    dtype = resolve_dtype(dtype, device) if isinstance(dtype, str) else dtype
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                resolved.path,
                num_labels=num_labels,
                problem_type="single_label_classification",
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # a head of another size; the body is checked below
                output_loading_info=True,
            )
        except ImportError as error:
            raise MissingExtraError(f"base model {record.name!r} needs a package: {first_line(error)}") from error
    tokenizer = load_tokenizer(resolved)
    _share_padding(model, tokenizer, record.name)
    fresh = {key if isinstance(key, str) else key[0] for key in (*report["missing_keys"], *report["mismatched_keys"])}
    head_modules = find_head_modules(model, fresh, record.name)
    model.requires_grad_(False).eval().to(device)
    return LoadedBase(model, tokenizer, head_modules, input_limit(model, tokenizer))


def load_tokenizer(base: ResolvedBase | BaseModelRecord) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone; it has a pad token (the end token where it brought none) and pads on the right.

    Args:
        base: A resolved base, or a record, whose tokenizer hash is then checked.

    Raises:
        DataError: There is no tokenizer, or it is broken.
        IncompatibleError: It is not the recorded one, needs remote code, or has no token to pad with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    resolved = locate_base(base) if isinstance(base, BaseModelRecord) else base
    found = tokenizer_hash(resolved.path)
    if isinstance(base, BaseModelRecord) and found != base.tokenizer_hash:
        raise IncompatibleError(f"base model {base.name!r} is not the one of this bank: its tokenizer differs")
    read_config(resolved.path)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(resolved.path, trust_remote_code=False, local_files_only=True)
        except ImportError as error:
            raise MissingExtraError(f"the tokenizer of {base.name!r} needs a package: {first_line(error)}") from error
        except Exception as error:  # transformers raises whatever its parsers raise
            raise DataError(f"the tokenizer in {resolved.path} cannot be read: {first_line(error)}") from error
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise IncompatibleError(f"the tokenizer of {base.name!r} has no pad, end or unknown token to pad with")
    tokenizer.padding_side = "right"
    return tokenizer


def resolve_device(name: str) -> torch.device:
    """``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        ConfigError: Another name.
        MissingExtraError: There is no such GPU.
    """
    import torch

    kind, _, index = name.partition(":")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or not (name == "cuda" or index.isdecimal()):
        raise ConfigError(f"device {name!r} is not known; there are auto, cpu, cuda and cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise MissingExtraError(f"device {name!r} is not there: torch sees {count} CUDA devices", hint="--device cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``"auto"`` (bfloat16 on a GPU that has it, float32 elsewhere), ``"float32"`` or ``"bfloat16"``.

    Raises:
        ConfigError: Another name.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype {name!r} is not known; there are auto, float32 and bfloat16")
    return torch.float32 if name == "float32" else torch.bfloat16


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load report, no progress bar, errors only; the settings are put back at the end."""
    import logging as levels

    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json; refused when it, or the tokenizer's, could make transformers run code from elsewhere.

    Raises:
        DataError: There is none, it is broken, or the folder holds an adapter.
        IncompatibleError: It asks for remote code.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists():  # transformers would follow it to another base model
        raise DataError(f"{folder} holds an adapter, not a base model", hint="--base with the model under the adapter")
    if not path.is_file():
        raise DataError(f"{folder} is not a model folder: it holds no config.json")
    config = read_json(path)
    _refuse_code(config, path)
    if (tokenizer := folder / "tokenizer_config.json").is_file():
        _refuse_code(read_json(tokenizer), tokenizer)
    return config


def find_head_modules(model: PreTrainedModel, fresh: set[str], name: str) -> tuple[str, ...]:
    """The smallest modules that hold the head: what stands beside the body, and a pooler without weights.

    Args:
        model: A sequence classifier.
        fresh: Names of the parameters that the files did not bring.
        name: The base model's name, for the message.

    Raises:
        IncompatibleError: Something of the body other than a pooler has no weights, or there is no head.
    """
    prefix = f"{model.base_model_prefix}."
    heads = [n for n, m in model.named_children() if n + "." != prefix and next(m.parameters(), None) is not None]
    poolers = []
    for key in sorted(key for key in fresh if key.startswith(prefix)):
        parts = key.split(".")
        if "pooler" not in parts:
            raise IncompatibleError(f"base model {name!r} has no weights of the right shape for {key}")
        poolers.append(".".join(parts[: parts.index("pooler") + 1]))
    if not heads:
        raise IncompatibleError(f"base model {name!r} ({type(model).__name__}) has no classification head")
    return (*dict.fromkeys(poolers), *heads)


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


def _hidden_size(resolved: ResolvedBase) -> int:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # unknown model types and checks of single fields raise different things
            raise IncompatibleError(f"base model {resolved.name!r}: {first_line(error)}") from error
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise IncompatibleError(
            f"base model {resolved.name!r} (type {config.model_type!r}) has no sequence classifier in transformers"
        )
    return int(config.get_text_config().hidden_size)


def _check_same(record: BaseModelRecord, found: BaseModelRecord) -> None:
    facts = {"weights": "fingerprint", "config.json": "config_hash", "tokenizer": "tokenizer_hash"}
    differ = [what for what, field in facts.items() if getattr(record, field) != getattr(found, field)]
    if differ:
        raise IncompatibleError(
            f"base model {record.name!r} is not the one of this bank: other {' and '.join(differ)}",
            unchanged="the bank was not changed",
            hint="put back the model that the bank was made with, or make a new bank: lorabank -b NEW init",
        )


def _share_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make the model find the last token of a padded text, which decoders classify by."""
    rows, tokens = len(cast(Any, model.get_input_embeddings()).weight), len(tokenizer)
    if tokens > rows:
        raise IncompatibleError(f"base model {name!r} has {rows} embeddings for a tokenizer of {tokens} tokens")
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id


def input_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Most tokens of a text, special ones included; None where neither model nor tokenizer sets a limit."""
    from torch import nn

    limits = [tokenizer.model_max_length]
    if positions := getattr(model.config.get_text_config(), "max_position_embeddings", None):
        limits.append(positions)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind the padding index.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - skipped)
    shortest = int(min(limits))
    return shortest if shortest < 1_000_000_000 else None
