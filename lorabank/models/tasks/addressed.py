"""Batches in which each row has its number in a training, and that of the head that judges it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HEADS = "heads"
ROWS = "rows"


def numbered(batch: dict[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """A batch with the numbers of its rows."""
    return batch | {ROWS: torch.tensor(rows)}


def under_head(batch: dict[str, Tensor], head: int | None) -> dict[str, Tensor]:
    """A batch with every row under one head; None leaves it as it is."""
    return batch if head is None else batch | {HEADS: torch.full_like(batch[HEADS], head)}


def without_address(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a task type knows of a batch."""
    return {name: value for name, value in batch.items() if name not in (HEADS, ROWS)}


def rows_of_terms(batch: dict[str, Tensor]) -> Tensor:
    """The number of each labelled term's row, int64 ``[n]``; its place in a batch whose rows have no numbers."""
    labels = batch["labels"]
    rows = batch[ROWS] if ROWS in batch else torch.arange(len(labels), device=labels.device)
    return rows if labels.dim() == 1 else rows.repeat_interleave((labels >= 0).sum(-1))
