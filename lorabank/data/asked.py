"""Rows of a file that are to be answered: all of their columns, in their order, whatever else they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorabank.data.bad_rows import BadRow, LeftOut, of_rows
from lorabank.data.formats.base import Reader, bad_row, missing_column
from lorabank.data.formats.cells import BadCell, check_text
from lorabank.data.formats.readers import Reading
from lorabank.data.sheets import open_sheet


@dataclass(frozen=True)
class AskedRows:
    """Rows with a text each; where there is none, with what is wrong with the row.

    Attributes:
        columns: The columns of the file; those without a name are left out.
        cells: The cells of each row, None for a row that could not be read.
        texts: The text of each row, None where it is bad.
        problems: What is wrong with each row, None where nothing is.
        notes: How the file was read, where that is not plain.
        bad: The bad rows, None where there are none.
    """

    columns: tuple[str, ...]
    cells: Sequence[tuple[object, ...] | None]
    texts: Sequence[str | None]
    problems: Sequence[str | None]
    notes: tuple[str, ...] = ()
    bad: LeftOut | None = None


def given_rows(texts: Sequence[str]) -> AskedRows:
    """Texts that stand in no file, as rows of one column."""
    return AskedRows(("text",), [(text,) for text in texts], texts, [None] * len(texts))


@of_rows
def read_asked(source: str, text_column: str, reading: Reading) -> AskedRows:
    """All rows of a file.

    Args:
        source: The file, or a data set of the hub.
        text_column: The column of the texts.
        reading: What the user says about reading the file; bad rows are kept, without an answer, where they are to be
            skipped.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file is broken, the column is missing, or rows are bad and not to be skipped or more than half.
    """
    sheet = open_sheet(source, (), reading)
    every = _all_columns(sheet.reader)
    sheet = sheet.adopting((text_column,))
    column = sheet.origin.get(text_column, text_column)
    if column not in every:
        raise missing_column(source, column, every, hint="name the column of the texts: --text-column COLUMN")
    columns = tuple(dict.fromkeys(name for name in every if name.strip() or name == column))
    table = sheet.read((text_column,), tuple(name for name in columns if name != column))
    order = [table.columns.index(name) for name in columns]
    found: list[tuple[int, tuple[object, ...] | None, str | None]] = []
    unreadable = list(table.bad.rows)
    for line, cells in zip(table.lines, table.rows, strict=True):
        text = None
        try:
            text = check_text(cells[0])
        except BadCell as error:
            table.refuse(line, bad_row(source, f"{table.unit} {line}, column {column!r}", error.problem))
        found.append((line, tuple(cells[place] for place in order), text))
    found += [(line, None, None) for line, _ in unreadable]
    found.sort(key=lambda row: row[0])
    problems: dict[int, BadRow] = dict(table.bad.rows)
    bad = table.bad.settle(source, len(table.lines) + len(unreadable) - table.bad.count, skip=reading.skip_bad)
    return AskedRows(
        columns=columns,
        cells=[cells for _, cells, _ in found],
        texts=[text for _, _, text in found],
        problems=[problems[line].brief if line in problems else None for line, *_ in found],
        notes=sheet.notes,
        bad=bad,
    )


def _all_columns(reader: Reader) -> tuple[str, ...]:
    """The columns of every row; of JSON, objects behind the first may have further keys."""
    every = getattr(reader, "all_columns", reader.columns)
    columns: tuple[str, ...] = every()
    return columns
