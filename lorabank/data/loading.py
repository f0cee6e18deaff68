"""From a file to the rows of a task: what a text and a label may be, and the two splits."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from lorabank.core.config import TrainConfig, nearest
from lorabank.core.errors import DataError
from lorabank.data.formats import UNCHANGED, bad_row, read_table
from lorabank.data.parquet import from_parquet, to_parquet
from lorabank.data.rows import Rows, sample_rows, shuffled_key

__all__ = ["Rows", "TaskData", "from_parquet", "load_task_data", "read_rows", "sample_rows", "to_parquet"]

MAX_LABELS = 10_000
MAX_LABEL_LENGTH = 256


@dataclass(frozen=True)
class TaskData:
    """The two splits of a task; no text stands in both.

    Attributes:
        labels: Every label of the training rows, in alphabetical order; in numerical order if all are integers.
        train: Training rows.
        eval: Evaluation rows; each label is one of ``labels``.
        dropped: Repetitions of an evaluation row that a split of our own left out (they would count twice).
    """

    labels: tuple[str, ...]
    train: Rows
    eval: Rows
    dropped: int = 0


def read_rows(path: str | Path, *, text_column: str, label_column: str | None) -> Rows:
    """Read texts, and labels if asked, from a ``.jsonl``, ``.csv`` or ``.parquet`` file.

    Labels are kept as strings without surrounding blanks: integers in decimal, booleans as ``true`` and ``false``.
    A whole number stored as a float (pandas makes ``1`` into ``1.0`` where a cell was missing) is the integer; any
    other float is refused. A CSV cell is a string and stays as it is written.

    Args:
        path: The file.
        text_column: Column of the texts.
        label_column: Column of the labels, or None for texts alone.

    Returns:
        At least one row.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file is empty or broken, a column is missing, or a cell is wrong; names line and column.
    """
    columns = (text_column,) if label_column is None else (text_column, label_column)
    table = read_table(path, columns)
    texts, labels = [], []
    for line, cells in zip(table.lines, table.rows, strict=True):
        try:
            column = text_column
            texts.append(_text(cells[0]))
            if label_column is not None:
                column = label_column
                labels.append(_label(cells[1]))
        except ValueError as error:
            raise bad_row(Path(path), f"{table.unit} {line}, column {column!r}", str(error)) from error
    return Rows(
        texts=tuple(texts),
        labels=tuple(labels),
        source=str(path),
        columns=columns,
        lines=tuple(table.lines),
        unit=table.unit,
    )


def load_task_data(config: TrainConfig) -> TaskData:
    """Read a task's training and evaluation rows.

    Without ``eval_data`` a part of the training file is set aside: ``eval_fraction`` of each label's distinct texts
    (rounded, at least one where the label has two), chosen by ``seed``. Rows with equal texts go to the same side.

    Args:
        config: ``data``, ``eval_data``, ``eval_fraction``, ``text_column``, ``label_column`` and ``seed`` are read.

    Returns:
        The splits, each in the order of its file.

    Raises:
        NotFoundError: A file is missing.
        DataError: A row is wrong, there are fewer than two labels or too few texts, or the evaluation file has a
            label or a text that it must not have; names file, line and column.
    """
    rows = read_rows(config.data, text_column=config.text_column, label_column=config.label_column)
    labels = _label_list(rows)
    if config.eval_data is None:
        train, evaluation, dropped = split_rows(rows, config.eval_fraction, config.seed)
        return TaskData(labels=labels, train=train, eval=evaluation, dropped=dropped)
    evaluation = read_rows(config.eval_data, text_column=config.text_column, label_column=config.label_column)
    _check_labels(evaluation, labels)
    _check_overlap(rows, evaluation)
    return TaskData(labels=labels, train=rows, eval=evaluation)


def split_rows(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows, int]:
    """Set a part of labelled rows aside for evaluation.

    Args:
        rows: Rows with labels.
        fraction: Part of each label's distinct texts that is set aside, in (0, 1).
        seed: Seed of the choice, in [0, 2**64).

    Returns:
        Training rows (every label is among them), evaluation rows, and how many repetitions of an evaluation row
        were dropped.

    Raises:
        DataError: No label has two distinct texts.
    """
    by_text: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(rows.texts):
        by_text[text].append(index)
    by_label: dict[str, list[str]] = defaultdict(list)
    for text, indices in by_text.items():
        by_label[rows.labels[indices[0]]].append(text)

    aside: set[str] = set()
    for texts in by_label.values():
        texts.sort(key=lambda text: shuffled_key(text, seed))
        aside.update(texts[: min(max(1, round(fraction * len(texts))), len(texts) - 1)])
    _return_lost_labels(rows, by_text, aside)
    if not aside:
        raise DataError(
            f"{rows.source!r}: too few rows to set some aside for evaluation ({len(rows)} rows, no label with two"
            " different texts)",
            unchanged=UNCHANGED,
            hint="give evaluation rows with --eval-data FILE",
        )
    train = [index for index, text in enumerate(rows.texts) if text not in aside]
    held = [index for index, text in enumerate(rows.texts) if text in aside]
    once = list({(rows.texts[index], rows.labels[index]): index for index in reversed(held)}.values())
    return rows.take(train), rows.take(sorted(once)), len(held) - len(once)


def _return_lost_labels(rows: Rows, by_text: dict[str, list[int]], aside: set[str]) -> None:
    """Take texts back from ``aside`` until every label is among the training rows.

    Needed only where one text has several labels: it was set aside under the first, and took the last row of
    another label with it.
    """
    trained = {label for text, label in zip(rows.texts, rows.labels, strict=True) if text not in aside}
    for text, indices in by_text.items():
        own = {rows.labels[index] for index in indices}
        if text in aside and not own <= trained:
            aside.discard(text)
            trained |= own


def _text(cell: object) -> str:
    if not isinstance(cell, str):
        raise ValueError(f"expected a text, found {_shown(cell)}")
    _check_characters(cell)
    if not cell.strip():
        raise ValueError("the text is empty")
    return cell


def _label(cell: object) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if not isinstance(cell, str | int):
        raise ValueError(f"expected a label (a string, integer or boolean), found {_shown(cell)}")
    label = str(cell).strip()
    _check_characters(label)
    if not label:
        raise ValueError("the label is empty")
    if len(label) > MAX_LABEL_LENGTH:
        raise ValueError(f"the label has {len(label)} characters; {MAX_LABEL_LENGTH} is the limit")
    return label


def _check_characters(cell: str) -> None:
    """Refuse what later fails far from here: NUL in tokenizers, lone surrogates when written as UTF-8."""
    if "\x00" in cell:
        raise ValueError(f"a NUL character at position {cell.index(chr(0)) + 1}")
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a lone surrogate at position {error.start + 1}") from error


def _shown(cell: object) -> str:
    if cell is None:
        return "nothing (null)"
    if isinstance(cell, bool | int | float):
        return f"{cell!r}"[:40]
    if isinstance(cell, list):
        return "a list"
    return "an object" if isinstance(cell, dict) else type(cell).__name__


def _label_list(rows: Rows) -> tuple[str, ...]:
    labels = set(rows.labels)
    if len(labels) < 2:
        only = next(iter(labels))
        raise DataError(
            f"{rows.source!r}: every row has the label {only!r}; at least two labels are needed",
            unchanged=UNCHANGED,
            hint="name another column with --label-column COLUMN",
        )
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"{rows.source!r}: {len(labels):,} different labels in the column {rows.columns[1]!r};"
            f" {MAX_LABELS:,} is the limit",
            unchanged=UNCHANGED,
            hint="name another column with --label-column COLUMN",
        )
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _check_labels(evaluation: Rows, labels: tuple[str, ...]) -> None:
    known = set(labels)
    for index, label in enumerate(evaluation.labels):
        if label not in known:
            shown = ", ".join(repr(name) for name in labels[:20]) + (", ..." if len(labels) > 20 else "")
            where = f"{evaluation.unit} {evaluation.lines[index]}, column {evaluation.columns[1]!r}"
            raise bad_row(
                Path(evaluation.source),
                where,
                f"the label {label!r} is not among the training labels {shown}.{nearest(label, list(labels))}",
            )


def _check_overlap(train: Rows, evaluation: Rows) -> None:
    first_line = {text: index for index, text in reversed(list(enumerate(train.texts)))}
    shared = [index for index, text in enumerate(evaluation.texts) if text in first_line]
    if shared:
        twin = first_line[evaluation.texts[shared[0]]]
        count = f"{len(shared)} evaluation rows repeat" if len(shared) > 1 else "an evaluation row repeats"
        raise DataError(
            f"{count} a training text, the first in {evaluation.where(shared[0])}, as {train.where(twin)}",
            unchanged=UNCHANGED,
            hint="remove these rows from one file, or leave out --eval-data to have a part of --data set aside",
        )
