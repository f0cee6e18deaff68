"""Kinds of data that cannot be learnt yet: recognised by their columns or cells, and refused in those words."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from lorabank.core.errors import DataError
from lorabank.data.bad_rows import UNCHANGED

SUPPORTED = "one label for a text, prompts with completions, conversations, or plain text: docs/data.md"

_TAGS = ("ner_tags", "pos_tags", "chunk_tags", "tags", "labels", "token_labels", "tag_ids")
_SEPARATORS = ("|", ";", ",")
_DECIMAL = re.compile(r"[+-]?\d*[.,]?\d+(?:[eE][+-]?\d+)?")
_ENOUGH = 10
"""Rows by which labels are judged to be numbers or lists; fewer prove nothing."""


def unsupported(source: str, kind: str, why: str, hint: str | None = None) -> DataError:
    """The error for such data: what it is, and by what it was recognised."""
    return DataError(
        f"{source!r}: {kind} not supported yet ({why})", unchanged=UNCHANGED, hint=hint or f"supported: {SUPPORTED}"
    )


def check_kind_of_columns(source: str, columns: Collection[str]) -> None:
    """Refuse columns of preferences or of token labels.

    Raises:
        DataError: In those words.
    """
    known = {column.strip().casefold(): column for column in columns}
    for pair in (("chosen", "rejected"), ("preferred_output", "non_preferred_output")):
        if known.keys() >= {*pair}:
            raise unsupported(
                source,
                "preferences (DPO) are",
                f"its columns are {known[pair[0]]!r} and {known[pair[1]]!r}",
                f"learn only the preferred answers: --map {known[pair[0]]}=completion, together with a column prompt",
            )
    tags = next((known[tag] for tag in _TAGS if tag in known), None)
    if "tokens" in known and tags:
        raise unsupported(
            source, "token labels (tagging, NER) are", f"its columns are {known['tokens']!r} and {tags!r}"
        )


def check_kind_of_labels(source: str, column: str, labels: Sequence[object]) -> None:
    """Refuse labels that are several of a row, or numbers to predict.

    Raises:
        DataError: In those words.
    """
    found = f"the cells of its column {column!r} are"
    most = len(labels) / 2
    if sum(isinstance(label, list | tuple) for label in labels) > most:
        raise unsupported(source, "several labels for a text (multi-label) are", f"{found} lists")
    if sum(isinstance(label, float) and not label.is_integer() for label in labels) > most:
        raise unsupported(source, "numbers to predict (regression) are", f"{found} decimal numbers")
    texts = [label.strip() for label in labels if isinstance(label, str) and label.strip()]
    if len(texts) < max(_ENOUGH, most):
        return
    if len(set(texts)) == len(texts) and _are_decimals(texts):
        raise unsupported(source, "numbers to predict (regression) are", f"{found} decimal numbers, all different")
    separator = next((one for one in _SEPARATORS if _are_lists(texts, one)), None)
    if separator:
        raise unsupported(
            source,
            "several labels for a text (multi-label) are",
            f"{found} labels separated by {separator!r}",
            f"if each cell is one label, write it without {separator!r}; supported: {SUPPORTED}",
        )


def check_kind_of_answers(source: str, column: str, marks: Sequence[object]) -> None:
    """Refuse prompts and completions beside a column that says of each whether it is wanted (KTO).

    Raises:
        DataError: In those words.
    """
    words = {str(mark).strip().casefold() for mark in marks}
    if words and words <= {"true", "false"}:
        raise unsupported(
            source,
            "preferences (KTO) are",
            f"the cells of its column {column!r} are true and false",
            "learn only the wanted answers: leave the other rows and this column out",
        )


def _are_decimals(texts: Sequence[str]) -> bool:
    """Whether all are numbers, and more than half of them not whole."""
    return all(_DECIMAL.fullmatch(text) for text in texts) and 2 * sum("." in t or "," in t for t in texts) > len(
        texts
    )


def _are_lists(texts: Sequence[str], separator: str) -> bool:
    """Whether most cells are lists of a few names.

    A label such as ``Paris, France`` or ``a|x`` is not taken for one: its parts are as many as the labels, or have
    their places.
    """
    cells = [[part.strip() for part in text.split(separator)] for text in texts]
    several = [cell for cell in cells if len(cell) > 1]
    if 2 * len(several) <= len(cells) or any(not part for cell in several for part in cell):
        return False
    parts, labels = {part for cell in cells for part in cell}, set(texts)
    places = [{cell[place] for cell in cells if len(cell) > place} for place in range(max(map(len, cells)))]
    apart = sum(map(len, places)) == len(parts)
    return len(parts) < len(labels) and not apart
