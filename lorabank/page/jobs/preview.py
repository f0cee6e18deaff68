"""What a file holds, before anything is trained on it; read by the functions that ``add-task`` reads it with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorabank.core.config import TrainConfig
from lorabank.data.loading import detect_form, open_rows
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.task_data import load_data

_ROWS = 5
_LONGEST = 64 << 20
"""Bytes of a file whose rows are read for a preview; those of larger ones a dry run reads, in a process of its own."""


@dataclass(frozen=True)
class Preview:
    """A file at a glance.

    Attributes:
        bytes: Its size.
        columns: Its columns.
        form: The form of its rows, a key of ``lorabank.core.shelves.FORMS``.
        rows: The first training rows: text or prompt, and label or completion.
        counts: Of each split, ``train`` and ``eval``, how many rows it has.
        labels: Each label with its rows in both splits, the most frequent first; empty without labels.
        told: How the file was read where that is not plain, and what is likely a mistake.
    """

    bytes: int
    columns: tuple[str, ...]
    form: str
    rows: tuple[tuple[str, str], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    labels: tuple[tuple[str, tuple[int, int]], ...] = ()
    told: tuple[str, ...] = ()


def preview(bank: Path, config: TrainConfig) -> Preview:
    """Look at the training rows of some settings as tasks of a bank have them.

    Raises:
        LorabankError: As `lorabank.workflows.task_data.load_data`: the rows cannot be read, or mean nothing here.
    """
    size = Path(config.data).stat().st_size
    sheet = open_rows(config.data, config)
    if size > _LONGEST:
        told = f"the file has more than {_LONGEST} bytes, so a dry run shows what is in it"
        return Preview(size, sheet.columns, detect_form(config), told=(told,))
    data = load_data(config, OpenBank(bank).base)
    return Preview(
        bytes=size,
        columns=sheet.columns,
        form=data.form,
        rows=tuple(zip(data.train.texts[:_ROWS], data.train.labels[:_ROWS], strict=True)),
        counts=(("train", len(data.train)), ("eval", len(data.eval))),
        labels=tuple((label, (counts["train"], counts["eval"])) for label, counts in data.label_counts.items()),
        told=data.told,
    )
