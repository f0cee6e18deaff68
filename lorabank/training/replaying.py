"""Rows of several tasks in one training run, each asked in its own task's form and judged by its own head."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorabank.core.errors import DataError
from lorabank.models.tasks.addressed import HEADS, ROWS, rows_of_terms, without_address
from lorabank.models.tasks.heads import Head, HeadSelection, load_head, switch_heads
from lorabank.models.tasks.padding import mean_over_passes
from lorabank.models.tasks.task_types import Examples, TaskType
from lorabank.models.tasks.token_rows import MadeRows
from lorabank.training.context import Each, Memory
from lorabank.training.job import Replayed

Asked = TypeVar("Asked")


class MixedTask:
    """A task type for rows of several tasks: `collate` keeps whose head a row is for, `loss` chooses it.

    Where earlier tasks take part, each row has its number, and class weights are those of the new task alone.

    Args:
        task_type: What the rows are in common.
        selection: The heads' switch; None for a model without heads.
        weights: Of the new task's labels, float32 ``[labels]``; None where all weigh the same.
        own: How many rows are the new task's, which are numbered first.
    """

    def __init__(
        self, task_type: TaskType, selection: HeadSelection | None, weights: Tensor | None = None, own: int = 0
    ) -> None:
        self._type = task_type
        self._selection = selection
        self._weights = weights
        self._own = own

    @property
    def several(self) -> bool:
        """Whether each row chooses among several heads."""
        return self._selection is not None

    def collate(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The task type's batch; where earlier tasks take part, with each row's number and that of its head."""
        batch = self._type.collate(tokenizer, rows)
        added = (name for name in (HEADS, ROWS) if name in rows[0])
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in added}

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The task type's loss, each row under its own head; with class weights, the weighted cross entropy."""
        if self._weights is not None:
            return self.mean(self._weighed, model, inputs)
        return self.unweighted(model, inputs)

    def unweighted(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The task type's loss, each row under its own head and every label counted the same."""
        if self._selection is None:
            return self._type.loss(model, without_address(inputs))
        return mean_over_passes(partial(self._under_heads, self._type.loss), model, inputs)

    @property
    def weighted(self) -> bool:
        """Whether the labels have weights."""
        return self._weights is not None

    def weigh(self, labels: Tensor) -> Tensor:
        """The weight of each label of the new task."""
        if self._weights is None:
            return torch.ones(labels.shape, device=labels.device)
        return self._weights.to(labels.device)[labels]

    def mean(self, each: Each, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The mean over the labelled terms of a batch, each row under its own head, of a loss of single terms."""

        def of_some(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
            logits, labels = self._under_heads(self._type.predictions, model, inputs)
            return each(logits, labels, rows_of_terms(inputs)).mean()

        return mean_over_passes(of_some, model, inputs)

    def weight(self, labels: Tensor, rows: Tensor) -> Tensor | float:
        """What each term counts by its label and the number of its row: see `TrainContext`."""
        if self._weights is None:
            return 1.0
        own = rows < self._own
        return torch.where(own, self.weigh(torch.where(own, labels, 0)), 1.0)

    def _weighed(self, logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """The weighted cross entropy of single terms."""
        return self.weight(labels, rows) * F.cross_entropy(logits, labels, reduction="none")

    def _under_heads(
        self, asked: Callable[[nn.Module, dict[str, Tensor]], Asked], model: nn.Module, inputs: dict[str, Tensor]
    ) -> Asked:
        """What is asked of rows that may share a pass."""
        if self._selection is None:
            return asked(model, without_address(inputs))
        with self._selection.chosen(inputs[HEADS].cpu()):  # one wait for a GPU, where each look at it would be one
            return asked(model, without_address(inputs))


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


def memory_of(examples: Examples, replayed: Sequence[Replayed], *, heads: bool) -> tuple[Memory, ...]:
    """What the strategy has of each of these tasks, whose examples `add_replayed` made."""
    if not replayed:
        return ()
    assert isinstance(examples.rows, _Headed)
    return tuple(
        Memory(task.place, head if heads else None, rows)
        for head, (task, rows) in enumerate(zip(replayed, examples.rows.parts[1:], strict=True), start=1)
    )


def kept_rows(examples: Examples, kept: Sequence[int]) -> Sequence[int]:
    """The numbers among the encoded rows of texts that are given by theirs, without those that were dropped."""
    if not examples.dropped:
        return kept
    own = range(len(examples.rows) - examples.replayed)
    numbers = {examples.rows[i]["index"]: i for i in own}
    return [numbers[i] for i in kept if i in numbers]


class _Headed(MadeRows):
    """The rows of several tasks one after the other, each with its number and that of its task's head."""

    def __init__(self, parts: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def parts(self) -> list[range]:
        """The numbers of each task's rows."""
        return [range(first, end) for first, end in pairwise(self._starts)]

    def row(self, index: int) -> dict[str, Any]:
        """The task's own row, its number and that of its head."""
        head = bisect_right(self._starts, index) - 1
        return {**self._parts[head][index - self._starts[head]], HEADS: head, ROWS: index}
