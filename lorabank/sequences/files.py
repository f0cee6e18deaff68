"""Files of rows for a sequence: the rows as they stand in their sources, so that their form stays what it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorabank.bank.failures import reported
from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.data.forms.base import labelled_form, load_form
from lorabank.data.loading import TaskData, open_rows
from lorabank.data.methods import without_format
from lorabank.data.rows import Rows
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.task_data import load_data


def as_written(settings: TrainConfig, **files: Any) -> TrainConfig:
    """The settings for files that are written here, whatever the settings say of how their sources are read.

    Args:
        settings: Those of the sources.
        files: Fields that name the files and say what is in them.
    """
    return replace(settings, map=(), set=without_format(settings.set), **files)


def copy_rows(rows: Rows, settings: TrainConfig, form: str, target: Path) -> None:
    """Write rows as JSON lines, each with the cells of its source under the names that the settings know.

    Args:
        rows: Rows of one file.
        settings: What they were read with.
        form: Their form.
        target: The file; it appears whole or not at all.
    """
    kind = load_form(form)
    sheet = open_rows(rows.source, settings)
    table = sheet.read(kind.in_sheet(settings), kind.optional)
    names = sheet.renamed(table.columns)
    cells = dict(zip(table.lines, table.rows, strict=True))
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        _write(temporary, (_line(names, cells[line]) for line in rows.lines))
        os.replace(temporary, target)


def load_without(settings: TrainConfig, base: OpenBase, labels: Sequence[str]) -> tuple[TaskData, tuple[int, int]]:
    """A task's rows without those of some labels, and how many of the two files' rows were left out."""
    if not labels:
        return load_data(settings, base), (0, 0)
    with TemporaryDirectory(prefix="lorabank-") as folder:
        copies: dict[str, Any] = {}
        counts = []
        for field in ("data", "eval_data"):
            if getattr(settings, field) is not None:
                copies[field] = str(Path(folder) / f"{field}.jsonl")
            counts.append(_keep(settings, field, labels, Path(copies[field])) if field in copies else 0)
        try:
            data = load_data(as_written(settings, format=labelled_form(), **copies), base)
        except DataError as error:
            message = error.message
            for field, copy in copies.items():
                message = message.replace(copy, getattr(settings, field))
            raise error.saying(message) from None
        sources = {copy: getattr(settings, field) for field, copy in copies.items()}
        train, evaluation = (replace(rows, source=sources[rows.source]) for rows in (data.train, data.eval))
    return replace(data, train=train, eval=evaluation), (counts[0], counts[1])


def _keep(settings: TrainConfig, field: str, labels: Sequence[str], target: Path) -> int:
    """Write the rows without these labels, each on the line that it has in its source; how many are left out."""
    sheet = open_rows(getattr(settings, field), settings)
    columns = (settings.text_column, settings.label_column)
    table = sheet.read(columns)
    table.bad.settle(sheet.source, len(table.rows), skip=settings.skip_bad)
    kept = [
        (line, cells)
        for line, cells in zip(table.lines, table.rows, strict=True)
        if str(cells[1]).strip() not in labels
    ]
    lines: list[str] = []
    for line, cells in kept:
        lines += ["\n"] * (line - 1 - len(lines))
        lines.append(_line(columns, cells))
    _write(target, lines)
    return len(table.rows) - len(kept)


def _line(names: Sequence[str], cells: Sequence[object]) -> str:
    row = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(target: Path, lines: Iterable[str]) -> None:
    with target.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
