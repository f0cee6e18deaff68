"""Base models: describe them from their files, load them for use, and say where adapters go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, DataError, IncompatibleError, MissingExtraError
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import TASK_TYPES
from lorabank.core.task_kinds import task_kind
from lorabank.models.bases.architecture import check_able, load_config, made_for, read_config
from lorabank.models.bases.body import body_of
from lorabank.models.bases.fingerprint import chat_template_hash, config_hash, quantised_fingerprint, tokenizer_hash
from lorabank.models.bases.kept_facts import known_weight_facts
from lorabank.models.bases.quantised.recipe import in_full, is_ours, read_recipe
from lorabank.models.bases.quiet import first_line, quiet_transformers
from lorabank.models.bases.resolving import ResolvedBase, complete, locate_base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_NO_LIMIT = 1_000_000_000
"""Tokens; tokenizers without a limit name a number far above it."""

_INSTALL = "install this package into the environment of lorabank"
_PUT_BACK = "restore the model that the bank was made with, or make a bank for this one"
NEW_BANK = (Command("-b", "NEW", "init", "--base", "FOLDER"),)
"""What makes a bank for another base model."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in memory, frozen and in eval mode.

    Attributes:
        model: A sequence classifier, whose head is a placeholder until ``put_head`` or ``switch_heads``, or a
            language model.
        tokenizer: Its tokenizer, with a pad token, padding on the right.
        head_modules: Smallest module names that hold every weight the base does not bring: the task's head. Empty
            for a language model.
        max_length: As `input_limit` gives it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head_modules: tuple[str, ...]
    max_length: int | None


@complete
def describe_base(resolved: ResolvedBase, task_type: str = "auto", quantise: str | None = None) -> BaseModelRecord:
    """Describe a base model from its files; no model is built.

    Args:
        resolved: Where the files lie.
        task_type: PEFT's name of the task type, or ``"auto"`` for the one that `infer_task_type` tells.
        quantise: The quantiser that its weights are kept by (`read_recipe`); None where they stay as they are.

    Raises:
        ConfigError: The task type, the quantiser or its correction is not known.
        DataError: A file is missing or broken.
        IncompatibleError: The model needs remote code, transformers has no class for it and the task type, or its
            weights are quantised already.
    """
    config = read_config(resolved.path)
    packed = (config.get("quantization_config") or {}).get("quant_method")
    if quantise is not None:
        quantise = _judged(quantise, packed, resolved.name)
    understood = load_config(resolved)
    if task_type == "auto":
        task_type = made_for(understood)
    else:
        TASK_TYPES.check(task_type)
    check_able(understood, task_type, resolved.name)
    weights = known_weight_facts(resolved.path)
    return BaseModelRecord(
        name=resolved.name,
        source=resolved.source,
        revision=resolved.revision,
        config_hash=config_hash(config),
        fingerprint=quantised_fingerprint(weights.fingerprint, quantise) if quantise else weights.fingerprint,
        tokenizer_hash=tokenizer_hash(resolved.path),
        chat_template_hash=chat_template_hash(resolved.path),
        dtype=weights.dtype,
        quantisation=quantise or packed,
        task_type=task_type,
        hidden_size=_hidden_size(understood, resolved.name),
        parameters=weights.parameters,
    )


def _judged(quantise: str, packed: str | None, name: str) -> str:
    """The quantiser with all its settings, when these weights can be kept by it."""
    if packed is not None:
        raise IncompatibleError(
            f"base model {name!r} is quantised already ({packed})",
            hint="leave out --quantise, or take the model as it was before",
            unchanged="nothing was changed",
        )
    return in_full(quantise)


@complete
def load_base(
    record: BaseModelRecord,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "float32",
    unrolled: bool = True,
) -> LoadedBase:
    """Load a bank's base model for its task type, after checking that it is the recorded one.

    Nothing is fetched beyond what ``resolve_base`` fetches, no remote code runs, only safetensors are read, and
    the global random state is left as it was.

    Args:
        record: The bank's base model.
        tokenizer: The base's, where it is loaded already.
        device: A torch device, or a name for ``resolve_device``.
        dtype: A torch dtype, or a name for ``resolve_dtype``.
        unrolled: Take experts and torch's attention apart into linear layers, as adapters on them need it.

    Raises:
        IncompatibleError: The files are not the recorded ones, or hold no weights for a part of a classifier's body
            or of a language model.
        NotFoundError: The model cannot be found; MissingExtraError, DataError as in ``resolve_base``.
    """
    import torch
    import transformers

    from lorabank.models.bases.kinds.attention import unroll_attention
    from lorabank.models.bases.kinds.experts import unroll_experts

    kind = task_kind(record.task_type)
    head = {"num_labels": 2, "problem_type": "single_label_classification"} if kind.has_head else {}
    resolved = locate_base(record)
    ours = record.quantisation if is_ours(record.quantisation) else None
    _check_same(record, describe_base(resolved, record.task_type, ours))
    device = resolve_device(device) if isinstance(device, str) else device
    dtype = resolve_dtype(dtype, device) if isinstance(dtype, str) else dtype
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model, report = getattr(transformers, kind.auto_class).from_pretrained(
                resolved.path,
                **head,
                dtype=getattr(torch, record.dtype) if ours else dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # a head of another size; all else is checked below
                output_loading_info=True,
            )
        except ImportError as error:
            message = f"base model {record.name!r} needs a package: {first_line(error)}"
            raise MissingExtraError(message, hint=_INSTALL) from error
    tokenizer = tokenizer or load_tokenizer(resolved)
    _share_padding(model, tokenizer, record.name)
    fresh = {key if isinstance(key, str) else key[0] for key in (*report["missing_keys"], *report["mismatched_keys"])}
    head_modules = find_head_modules(model, fresh, record.name) if kind.has_head else ()
    if fresh and not kind.has_head:
        raise IncompatibleError(f"base model {record.name!r} has no weights of the right shape for {min(fresh)}")
    model.requires_grad_(False).eval()
    if unrolled:
        unroll_attention(model)  # a correction measures what its layers read, which torch's kernel does not call
    if ours:
        from lorabank.models.bases.quantised.replacing import quantise_model
        from lorabank.models.bases.targets import to_quantise

        recipe = read_recipe(str(ours))
        quantise_model(model, tokenizer, recipe, to_quantise(model, head_modules), dtype=dtype, record=record)
    model.to(device)
    if unrolled:
        unroll_experts(model)
    return LoadedBase(model, tokenizer, head_modules, input_limit(model, tokenizer))


def weights_of(base: LoadedBase) -> Callable[[str], torch.Tensor]:
    """Gives the weight ``[d_out, d_in]`` of a module by its name, as the loaded base has it."""
    from lorabank.models.bases.sites import site_of

    return lambda module: site_of(base.model, module).weight().detach()


def recorded_weights(record: BaseModelRecord) -> Callable[[str], torch.Tensor]:
    """The same of a bank's base model in float32 on the CPU, loaded when the first weight is asked for."""
    loaded = cache(lambda: weights_of(load_base(record)))
    return lambda module: loaded()(module)


@complete
def load_tokenizer(base: ResolvedBase | BaseModelRecord) -> PreTrainedTokenizerBase:
    """Load the tokenizer alone; it has a pad token (the end token where it brought none) and pads on the right.

    Args:
        base: A resolved base, or a record, whose hashes of it are then checked.

    Raises:
        DataError: There is no tokenizer, or it is broken.
        IncompatibleError: It or its chat template is not the recorded one, it needs remote code, or it has no token
            to pad with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    resolved = locate_base(base) if isinstance(base, BaseModelRecord) else base
    found, template = tokenizer_hash(resolved.path), chat_template_hash(resolved.path)
    if isinstance(base, BaseModelRecord) and (found, template) != (base.tokenizer_hash, base.chat_template_hash):
        what = "tokenizer" if found != base.tokenizer_hash else "chat template"
        raise IncompatibleError(
            f"base model {base.name!r} is not the one of this bank: its {what} differs",
            unchanged="the bank was not changed",
            hint=_PUT_BACK,
            commands=NEW_BANK,
        )
    read_config(resolved.path)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(resolved.path, trust_remote_code=False, local_files_only=True)
        except ImportError as error:
            message = f"the tokenizer of {base.name!r} needs a package: {first_line(error)}"
            raise MissingExtraError(message, hint=_INSTALL) from error
        except Exception as error:  # transformers raises whatever its parsers raise
            message = f"the tokenizer in {resolved.path} cannot be read: {first_line(error)}"
            raise DataError(message, hint="a fast tokenizer is needed, saved as tokenizer.json") from error
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
        raise ConfigError(
            f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:N", unchanged="nothing was changed"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise MissingExtraError(
            f"device {name!r} does not exist: torch sees {count} CUDA devices",
            hint="use --device cpu",
            unchanged="nothing was changed",
        )
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
        raise ConfigError(
            f"dtype {name!r} is unknown; choose auto, float32 or bfloat16", unchanged="nothing was changed"
        )
    return torch.float32 if name == "float32" else torch.bfloat16


def find_head_modules(model: PreTrainedModel, fresh: set[str], name: str) -> tuple[str, ...]:
    """The smallest modules that hold the head: what stands beside the body, and a pooler without weights.

    Args:
        model: A sequence classifier.
        fresh: Names of the parameters that the files did not bring.
        name: The base model's name, for the message.

    Raises:
        IncompatibleError: Something of the body other than a pooler has no weights, or there is no head.
    """
    body = body_of(model)
    heads = [n for n, m in model.named_children() if m is not body and next(m.parameters(), None) is not None]
    inside = tuple(f"{n}." for n, m in model.named_children() if m is body)
    poolers = []
    for key in sorted(key for key in fresh if key.startswith(inside)):
        parts = key.split(".")
        if "pooler" not in parts:
            raise IncompatibleError(f"base model {name!r} has no weights of the right shape for {key}")
        poolers.append(".".join(parts[: parts.index("pooler") + 1]))
    if not heads:
        raise IncompatibleError(f"base model {name!r} ({type(model).__name__}) has no classification head")
    return (*dict.fromkeys(poolers), *heads)


def _check_same(record: BaseModelRecord, found: BaseModelRecord) -> None:
    facts = {
        "weights": "fingerprint",
        "config.json": "config_hash",
        "tokenizer": "tokenizer_hash",
        "chat template": "chat_template_hash",
    }
    differ = [what for what, field in facts.items() if getattr(record, field) != getattr(found, field)]
    if differ:
        raise IncompatibleError(
            f"base model {record.name!r} is not the one of this bank: other {' and '.join(differ)}",
            unchanged="the bank was not changed",
            hint=_PUT_BACK,
            commands=NEW_BANK,
        )


def _hidden_size(config: PreTrainedConfig, name: str) -> int:
    """The width that the config names; what features are wide is read from the model when they are made."""
    try:
        return int(config.get_text_config().hidden_size)
    except (AttributeError, TypeError, ValueError) as error:  # of several text models, or of none
        raise IncompatibleError(
            f"base model {name!r} (type {config.model_type!r}) does not say how wide its hidden states are",
            hint="choose another model: --base",
            unchanged="nothing was changed",
        ) from error


def _share_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make the model find the last token of a padded text, which decoders classify by."""
    try:
        rows, tokens = len(cast(Any, model.get_input_embeddings()).weight), len(tokenizer)
    except (RuntimeError, AttributeError) as error:  # CANINE hashes characters, and says that it has none
        raise IncompatibleError(
            f"base model {name!r} ({type(model).__name__}) has no table of embeddings, one for each token",
            hint="choose another model: --base",
            unchanged="nothing was changed",
        ) from error
    if tokens > rows:
        raise IncompatibleError(f"base model {name!r} has {rows} embeddings for a tokenizer of {tokens} tokens")
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id
    if (generation := getattr(model, "generation_config", None)) is not None:
        generation.pad_token_id = tokenizer.pad_token_id


def input_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Maximum tokens that the model takes, special ones included; None where neither it nor its tokenizer limits them.

    A causal model's limit is on prompt and answer together, an encoder-decoder's on each of them. T5 counts positions
    relatively and takes any number; its tokenizer may name the number that it was trained with.
    """
    from torch import nn

    limits = [tokenizer.model_max_length, getattr(model.config.get_text_config(), "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind the padding index.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - skipped)
    shortest = int(min(limit for limit in (*limits, _NO_LIMIT) if limit is not None and limit > 0))  # XLNet has -1
    return shortest if shortest < _NO_LIMIT else None
