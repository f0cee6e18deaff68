"""Rows of several tasks in one training run, each asked in its own task's form and judged by its own head."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorabank.core.errors import DataError
from lorabank.models.tasks.heads import Head, HeadSelection, load_head, switch_heads
from lorabank.models.tasks.padding import mean_over_passes
from lorabank.models.tasks.task_types import Examples, TaskType
from lorabank.models.tasks.token_rows import MadeRows
from lorabank.training.job import Replayed

_HEADS = "heads"


class MixedTask:
    """A task type for rows of several tasks: `collate` keeps whose head a row is for, `loss` chooses it.

    Args:
        task_type: What the rows are in common.
        selection: The heads' switch; None for a model without heads.
    """

    def __init__(self, task_type: TaskType, selection: HeadSelection | None) -> None:
        self._type = task_type
        self._selection = selection

    def collate(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The task type's batch, with ``heads [n]``."""
        batch = self._type.collate(tokenizer, rows)
        return batch if self._selection is None else {**batch, _HEADS: torch.tensor([row[_HEADS] for row in rows])}

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The task type's loss, each row under its own head."""
        if self._selection is None:
            return self._type.loss(model, inputs)
        return mean_over_passes(self._under_heads, model, inputs)

    def _under_heads(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Of rows that may share a pass."""
        assert self._selection is not None
        with self._selection.chosen(inputs[_HEADS].cpu()):  # one wait for a GPU, where each look at it would be one
            return self._type.loss(model, {name: value for name, value in inputs.items() if name != _HEADS})


def keep_heads(
    model: PreTrainedModel, head_modules: Sequence[str], own: Head, replayed: Sequence[Replayed]
) -> HeadSelection:
    """Give the model the new task's head (number 0) beside those of the replayed tasks, which are frozen."""
    heads = [load_head(model, head_modules, len(task.labels), task.head, dtype=torch.float32) for task in replayed]
    for head in heads:
        for module in head.modules.values():
            module.requires_grad_(False)
    return switch_heads(model, [own, *heads])


def add_replayed(task_type: TaskType, tokenizer: Any, own: Examples, replayed: Sequence[Replayed]) -> Examples:
    """The new task's examples and those of the replayed tasks, each with the number of its head."""
    parts = [own]
    for task in replayed:
        encode = partial(task_type.encode, tokenizer, labels=task.labels, template=task.template)
        try:
            parts.append(encode(task.texts, task.targets, max_length=task.max_length))
        except DataError:
            parts.append(Examples((), (), 0))  # none of these rows fits, as when the task was learnt
    rows = _Headed([part.rows for part in parts])
    lengths = array("i", chain.from_iterable(part.lengths for part in parts))
    return Examples(rows, lengths, own.cut, own.dropped, replayed=len(rows) - len(own.rows))


class _Headed(MadeRows):
    """The rows of several tasks one after the other, each with the number of its task's head."""

    def __init__(self, parts: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, index: int) -> dict[str, Any]:
        """The task's own row, and the number of its head."""
        head = bisect_right(self._starts, index) - 1
        return {**self._parts[head][index - self._starts[head]], _HEADS: head}
