r"""A task, or a sum of tasks, merged into a float base: the whole model as transformers saves and loads it.

Each adapted matrix becomes ``diag(g) W + s B A``, added in float32 and rounded once, to the dtype of the folder. Fused
experts and torch's attention are taken apart for it and put together again. A table of embeddings that is also the
output layer is stored twice when an adapter changes one of the two.

What was written is loaded by plain transformers before it counts, and must answer as the model in memory does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lorabank.algebra.biases import ENDING
from lorabank.algebra.factors import LoraFactors
from lorabank.bank.objects.store import check_space
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.core.task_kinds import task_kind
from lorabank.exchange.peft_folder import read_adapter
from lorabank.exchange.safe_folders import in_folder
from lorabank.models.bases.fingerprint import tokenizer_files
from lorabank.models.bases.kinds.attention import is_attention, unroll_attention
from lorabank.models.bases.kinds.experts import matrices_of, unroll_experts
from lorabank.models.bases.loading import LoadedBase, load_base
from lorabank.models.bases.quiet import quiet_transformers
from lorabank.models.bases.resolving import locate_base
from lorabank.models.bases.sites import site_of
from lorabank.models.tasks.heads import load_head, put_head

_TOKENS = 32
_TOLERANCE = 1e-4
"""Of the largest logit: how far the answers of the loaded folder may be from those of the model in memory."""


def write_checkpoint(
    folder: Path, files: Mapping[str, bytes], base: BaseModelRecord, labels: Sequence[str], dtype: str | None
) -> None:
    """Write config, weights and tokenizer of the merged model into a folder that exists.

    Args:
        folder: Where they go.
        files: PEFT's files of the adapter, as the bank stores them; a classifier's with a head.
        base: The bank's base, which no quantiser keeps.
        labels: Of a classifier's head, whose weights are in the files.
        dtype: Of the weights; None for the base's.

    Raises:
        IncompatibleError: Plain transformers answers otherwise, or the head is not one of these labels.
        StorageError: The disk has no room for it.
    """
    with in_folder(files) as adapter:
        factors, head, _ = read_adapter(adapter)
    kept: torch.dtype = getattr(torch, dtype or base.dtype)
    check_space(folder, base.parameters * kept.itemsize)
    loaded = load_base(base, unrolled=False)
    if task_kind(base.task_type).has_head:
        _put_head(loaded, head, labels)
    merge(loaded.model, factors)
    ids = _some_tokens(loaded)
    with torch.no_grad(), quiet_transformers():
        for tensor in loaded.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(kept))
        expected = _logits(loaded.model, ids)
        model: Any = loaded.model
        _save(model.to(kept), folder)
        for path in folder.glob("*.safetensors"):  # which are written for their owner alone
            path.chmod((folder / "config.json").stat().st_mode)
        for name, data in tokenizer_files(locate_base(base).path).items():
            (folder / name).write_bytes(data)
        del loaded, model
        kind: Any = getattr(transformers, task_kind(base.task_type).auto_class)
        again = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
        error = float((_logits(again.eval(), ids) - expected).abs().max() / expected.abs().max())
    if not error <= _TOLERANCE:
        raise IncompatibleError(
            f"plain transformers would answer otherwise than the merged {type(again).__name__}: "
            f"{error:.1g} of the largest logit",
            hint="export it without --merged",
            unchanged="nothing was written",
        )


def _save(model: Any, folder: Path) -> None:
    """As transformers does, with the base's generation config as it is.

    Since its pad token is set, transformers would refuse one that names a temperature without sampling, as that of
    Llama 2 does.
    """
    generation = model.generation_config if model.can_generate() else None
    if generation is not None:
        model.generation_config = transformers.GenerationConfig()
    model.save_pretrained(folder)
    if generation is not None:
        generation.to_json_file(folder / transformers.utils.GENERATION_CONFIG_NAME)


def merge(model: Any, factors: LoraFactors) -> None:
    """Add an adapter to the weights of a model of transformers, in place."""
    _separate(model, factors.A.keys())
    modules = model.named_modules(remove_duplicate=False)
    fused = {name: module for name, module in modules if is_attention(module) or matrices_of(module)}
    unroll_experts(model)
    unroll_attention(model)
    with torch.no_grad():
        for name in factors.A:
            site = site_of(model, name)
            weight: nn.Parameter = site.module.weight  # type: ignore[assignment]
            total = site.merged(factors.delta(name, site.weight()))
            weight.copy_(site.of_kind.kept(site.module, total))
    for name, module in fused.items():  # the layers that they were taken apart into are views of their numbers
        model.set_submodule(name, module)


def _separate(model: Any, adapted: Collection[str]) -> None:
    """Give adapted modules a weight of their own where they share it, and let the config say so."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    for shared in names.values():
        if len(shared) > 1 and (changed := set(shared) & set(adapted)):
            for name in changed:
                module = model.get_submodule(name.removesuffix(ENDING))
                kept = "bias" if name.endswith(ENDING) else "weight"
                setattr(module, kept, nn.Parameter(getattr(module, kept).detach().clone(), requires_grad=False))
            for config in (model.config, model.config.get_text_config()):
                config.tie_word_embeddings = False


def _put_head(loaded: LoadedBase, head: Mapping[str, Tensor], labels: Sequence[str]) -> None:
    model = loaded.model
    put_head(model, load_head(model, loaded.head_modules, len(labels), head))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}


def _some_tokens(loaded: LoadedBase) -> Any:
    """A text of many different tokens, as the tokenizer encodes it."""
    size = len(loaded.tokenizer)
    text = loaded.tokenizer.decode(list(range(0, size, max(1, size // _TOKENS))), skip_special_tokens=True)
    longest = min(_TOKENS, loaded.max_length or _TOKENS)
    options = {"truncation": True, "max_length": longest, "return_token_type_ids": False}
    return loaded.tokenizer(text or "a", return_tensors="pt", **options)


def _logits(model: Any, ids: Any) -> Tensor:
    more = {}
    if model.config.is_encoder_decoder and model.can_generate():
        more = {"decoder_input_ids": ids["input_ids"][:, :2]}
    with torch.no_grad():
        logits: Tensor = model(**ids, **more).logits
    return logits.float()
