"""A base model in use: its tokenizer is built once, its weights are checked and loaded once, whoever asks for them."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from lorabank.core.records import BaseModelRecord
from lorabank.core.task_kinds import task_kind
from lorabank.models.bases.loading import LoadedBase, load_base, load_tokenizer, resolve_device, resolve_dtype
from lorabank.models.bases.quiet import quiet_transformers
from lorabank.models.bases.resolving import locate_base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class OpenBase:
    """A recorded base model, with what was loaded of it.

    Args:
        record: The base model of a bank, or of a bank to be.
    """

    def __init__(self, record: BaseModelRecord) -> None:
        self.record = record
        self._loaded: LoadedBase | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, after its files were compared with the record; errors as of `load_tokenizer`."""
        return load_tokenizer(self.record)

    @cached_property
    def shapes(self) -> PreTrainedModel:
        """The model without memory for its weights, to look at and not to change."""
        import torch
        import transformers

        from lorabank.models.bases.kinds.attention import unroll_attention
        from lorabank.models.bases.kinds.experts import unroll_experts

        auto = getattr(transformers, task_kind(self.record.task_type).auto_class)
        with quiet_transformers(), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(locate_base(self.record).path, local_files_only=True)
            model: PreTrainedModel = auto.from_config(config)
        unroll_experts(model)
        unroll_attention(model)
        return model

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | str = "float32") -> LoadedBase:
        """A model of its own over the weights in memory, which are loaded when there are none.

        Modules can be wrapped, heads exchanged and weights replaced by others without a trace in the next model that
        this gives; only a write into a weight's own memory would be seen there, and nothing in lorabank makes one.
        Weights of one dtype on one device are in memory at a time: where others are asked for, these are let go first.

        Args:
            device: A torch device, or a name for `resolve_device`.
            dtype: A torch dtype, or a name for `resolve_dtype`.

        Raises:
            LorabankError: As `load_base`.
        """
        device = resolve_device(device) if isinstance(device, str) else device
        dtype = resolve_dtype(dtype, device) if isinstance(dtype, str) else dtype
        if self._loaded is None or not _lies(self._loaded.model, device, dtype):
            self._loaded = None
            self._loaded = load_base(self.record, tokenizer=self.tokenizer, device=device, dtype=dtype)
        return replace(self._loaded, model=_twin(self._loaded.model))

    def let_go(self) -> None:
        """Keep no weights: what a model replaces of its own is freed, and the next `load` reads the files again."""
        self._loaded = None


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules once more, over the same tensors."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _lies(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model is on a device, in a dtype; ``cuda`` without a number is the present one."""
    there = model.device
    same = there.type == device.type and device.index in (None, there.index)
    return same and model.dtype == dtype
