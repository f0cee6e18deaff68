"""What a cell may hold: texts and labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorabank.core.limits import MAX_LABEL_LENGTH


class BadCell(ValueError):
    """A cell that cannot be used.

    Args:
        problem: What is wrong with it.
        place: Where inside the cell, for example ``"message 2"``.
        hint: What to do about it.
    """

    def __init__(self, problem: str, *, place: str = "", hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = place
        self.hint = hint
        self.column = ""


@contextmanager
def in_column(column: str) -> Iterator[None]:
    """What is wrong in here is about a cell of this column, not of the form's first."""
    try:
        yield
    except BadCell as error:
        error.column = column
        raise


def check_text(cell: object, what: str = "text") -> str:
    """A string that is not blank, as it is.

    Raises:
        BadCell: It is something else, or holds characters that fail later.
    """
    if not isinstance(cell, str):
        raise BadCell(f"expected a text, found {shown(cell)}")
    check_characters(cell)
    if not cell.strip():
        raise BadCell(f"the {what} is empty")
    return cell


def check_label(cell: object) -> str:
    """A label as a string without surrounding blanks.

    Integers are written in decimal, booleans as ``true`` and ``false``. A whole number stored as a float (pandas makes
    ``1`` into ``1.0`` where a cell was missing) is the integer; any other float is refused.

    Raises:
        BadCell: The cell is not a label, or an empty or too long one.
    """
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if not isinstance(cell, str | int):
        raise BadCell(f"expected a label (a string, integer or boolean), found {shown(cell)}")
    label = str(cell).strip()
    check_characters(label)
    if not label:
        raise BadCell("the label is empty")
    if len(label) > MAX_LABEL_LENGTH:
        raise BadCell(f"the label has {len(label)} characters; {MAX_LABEL_LENGTH} is the limit")
    return label


def check_characters(cell: str) -> None:
    """Refuse what later fails far from here: NUL in tokenizers, lone surrogates when written as UTF-8.

    Raises:
        BadCell: With the position.
    """
    if "\x00" in cell:
        raise BadCell(f"a NUL character at position {cell.index(chr(0)) + 1}")
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise BadCell(f"a lone surrogate at position {error.start + 1}") from error


def shown(cell: object) -> str:
    """What a cell of the wrong type is called in a message."""
    if cell is None:
        return "nothing (null)"
    if isinstance(cell, bool | int | float):
        return f"{cell!r}"[:40]
    if isinstance(cell, str):
        return "a text"
    if isinstance(cell, list):
        return "a list"
    return "an object" if isinstance(cell, dict) else type(cell).__name__
