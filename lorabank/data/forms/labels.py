"""The labels of a task: their list, and words in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorabank.core.errors import ConfigError, DataError
from lorabank.core.limits import MAX_LABEL_LENGTH, MAX_LABELS
from lorabank.core.settings import nearest
from lorabank.data.bad_rows import UNCHANGED, BadRows
from lorabank.data.formats.base import bad_row
from lorabank.data.formats.cells import BadCell, check_label
from lorabank.data.rows import Rows

_ANOTHER_COLUMN = "name another column with --label-column COLUMN"


def label_list(rows: Rows, *, hint: str = _ANOTHER_COLUMN) -> tuple[str, ...]:
    """The distinct labels in alphabetical order; in numerical order if all are integers.

    Args:
        rows: Rows with labels.
        hint: What to do if they cannot be one.

    Raises:
        DataError: There are fewer than two, too many, or one that is too long.
    """
    labels = set(rows.labels)
    if len(labels) < 2:
        only = next(iter(labels))
        raise DataError(
            f"{rows.source!r}: every row has the label {_short(only)!r}; at least two labels are needed",
            unchanged=UNCHANGED,
            hint=hint,
        )
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"{rows.source!r}: {len(labels):,} different labels in the column {rows.columns[-1]!r};"
            f" {MAX_LABELS:,} is the limit",
            unchanged=UNCHANGED,
            hint=hint,
        )
    for index, label in enumerate(rows.labels):
        if len(label) > MAX_LABEL_LENGTH:
            problem = f"the label has {len(label)} characters; {MAX_LABEL_LENGTH} is the limit"
            raise bad_row(rows.source, _where(rows, index), problem, hint=hint)
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def check_labels(evaluation: Rows, labels: Sequence[str]) -> None:
    """Refuse evaluation rows with a label that no training row has.

    Raises:
        DataError: Naming the lines, the labels and the nearest ones.
    """
    known, bad = set(labels), BadRows()
    for index, label in enumerate(evaluation.labels):
        if label not in known:
            listed = ", ".join(repr(name) for name in labels[:20]) + (", ..." if len(labels) > 20 else "")
            problem = f"the label {_short(label)!r} is not among the training labels {listed}"
            problem += nearest(label, list(labels))
            bad.add(evaluation.lines[index], bad_row(evaluation.source, _where(evaluation, index), problem))
    if bad.count:
        raise bad.error(evaluation.source, hint="add rows of these labels to --data, or take these out of --eval-data")


def label_words(setting: str, labels: Sequence[str]) -> dict[str, str]:
    """The word of each label.

    Args:
        setting: ``label=word`` for each label, separated by commas.
        labels: The labels.

    Returns:
        Label to word, in the order of ``labels``.

    Raises:
        ConfigError: A part is not of this form, a label is unknown, named twice or without a word, or two labels have
            one word.
    """
    words: dict[str, str] = {}
    for part in setting.split(","):
        label, _, word = (side.strip() for side in part.partition("="))
        try:
            word = check_label(word)
        except BadCell as error:
            raise _bad_words(
                f"{part.strip()!r} is not label=word ({error.problem.replace('label', 'word')})"
            ) from error
        if label not in labels:
            raise _bad_words(f"the data have no label {label!r}{nearest(label, list(labels))}")
        if label in words:
            raise _bad_words(f"the label {label!r} has two words")
        twin = next((other for other, taken in words.items() if taken == word), None)
        if twin is not None:
            raise _bad_words(f"the labels {twin!r} and {label!r} have the same word, {word!r}")
        words[label] = word
    without = [label for label in labels if label not in words]
    if without:
        raise _bad_words(
            f"no word for the label {without[0]!r}" + (f" and {len(without) - 1} more" * (len(without) > 1))
        )
    return {label: words[label] for label in labels}


def replace_labels(rows: Rows, words: Mapping[str, str]) -> Rows:
    """The rows with a word in the place of each label."""
    return replace(rows, labels=tuple(words[label] for label in rows.labels))


def _bad_words(problem: str) -> ConfigError:
    return ConfigError(
        f"label_words: {problem}",
        unchanged=UNCHANGED,
        hint="a word for each label: --set label_words=0=negative,1=positive",
    )


def _where(rows: Rows, index: int) -> str:
    return f"{rows.unit} {rows.lines[index]}, column {rows.columns[-1]!r}"


def _short(label: str) -> str:
    return label if len(label) <= 60 else f"{label[:57]}..."
