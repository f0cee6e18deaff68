"""Excel workbooks (.xlsx), through the optional package openpyxl: one sheet, row by row, nothing in it is computed.

A cell is the string that its user sees, as in a CSV file that Excel saves; dates are written as ISO 8601 says and not
as a country does.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from lorabank.core.commands import Command
from lorabank.core.errors import DataError, LorabankError, MissingExtraError
from lorabank.core.limits import MAX_LINE, MAX_ROWS, MAX_WORKBOOK
from lorabank.core.machine.packages import install
from lorabank.core.settings import nearest, setting
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import Table, bad_row, listed_columns, missing_column

_NUMBER = re.compile(r"(#,##)?(0+)(\.0+)?(%)?")
_DIGITS = 15
"""As many as Excel keeps of a number."""


@dataclass(frozen=True)
class Workbook:
    """An Excel workbook, of which one sheet is read."""

    sheet: str | None = setting(None, "Name of the sheet; default: the first.")

    def __call__(self, path: Path) -> WorkbookFile:
        """The reader of a file.

        Raises:
            MissingExtraError: The package ``openpyxl`` is not installed.
        """
        return WorkbookFile(path, self.sheet)


class WorkbookFile:
    """A sheet of a workbook, whose first row that is not empty names the columns; empty rows are skipped.

    Every method raises DataError where the file is not that.

    Raises:
        MissingExtraError: The package ``openpyxl`` is not installed.
    """

    def __init__(self, path: Path, sheet: str | None = None) -> None:
        self.path = path
        self._wanted = sheet
        try:
            self._load = import_module("openpyxl").load_workbook
        except (ImportError, AttributeError) as error:
            raise MissingExtraError(
                f"{str(path)!r}: reading it needs the package openpyxl, which is not installed",
                unchanged=UNCHANGED,
                hint=f"{install('xlsx')}, or save it as CSV",
            ) from error

    @property
    def read_as(self) -> str:
        """The sheet, where there are several."""
        with self._opened() as book:
            names = [sheet.title for sheet in book.worksheets]
            return f"sheet {self._sheet(book).title!r} of {len(names)}" if len(names) > 1 else ""

    def columns(self) -> tuple[str, ...]:
        """The cells of the header."""
        with self._rows() as rows:
            return tuple(next(rows, (0, []))[1])

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of these columns, each row with its number in the sheet; None for an optional one not there.

        Raises:
            DataError: A column is missing or stands twice, or a limit is passed.
        """
        table = Table(str(self.path), (*columns, *optional), unit="row")
        with self._rows() as rows:
            header = next(rows, (0, []))[1]
            places = [self._place(header, column, column in columns) for column in table.columns]
            for number, cells in rows:
                found = tuple(None if place is None else cells[place] for place in places)
                if sum(len(cell) for cell in found if cell) * 4 > MAX_LINE and self._size(found) > MAX_LINE:
                    problem = f"longer than {MAX_LINE:,} bytes"
                    table.refuse(number, bad_row(self.path, f"row {number}", problem, commands=[Command("limits")]))
                else:
                    table.add(number, found)
        return table

    @staticmethod
    def _size(cells: Iterable[str | None]) -> int:
        return sum(len(cell.encode("utf-8", "surrogatepass")) for cell in cells if cell)

    def _place(self, header: list[str], column: str, needed: bool) -> int | None:
        if header.count(column) > 1:
            problem = f"{str(self.path)!r}: the column {column!r} appears twice in the header"
            raise DataError(problem, unchanged=UNCHANGED)
        if column in header:
            return header.index(column)
        if not needed:
            return None
        if not header:
            raise DataError(
                f"{str(self.path)!r} has no rows", unchanged=UNCHANGED, hint="choose another sheet: --set sheet=NAME"
            )
        raise missing_column(self.path, column, header)

    @contextmanager
    def _rows(self) -> Iterator[Iterator[tuple[int, list[str]]]]:
        """Number, from 1, and cells of each row that is not empty, all as long as the first of them."""
        with self._opened() as book:
            yield self._numbered(self._sheet(book))

    def _numbered(self, sheet: Any) -> Iterator[tuple[int, list[str]]]:
        sheet.reset_dimensions()  # what the file says of its size need not be so
        for first, cells in enumerate(sheet.iter_rows(max_row=MAX_ROWS), start=1):
            names = [_shown(cell).strip() for cell in cells]
            while names and not names[-1]:
                names.pop()
            if names:
                yield first, names
                break
        else:
            return
        rows = sheet.iter_rows(min_row=first + 1, max_row=MAX_ROWS + 1, max_col=len(names))
        for number, cells in enumerate(rows, start=first + 1):
            texts = [_shown(cell) for cell in cells]
            if any(texts):
                yield number, texts

    def _sheet(self, book: Any) -> Any:
        sheets = {sheet.title: sheet for sheet in book.worksheets}
        if not sheets:
            raise DataError(f"{str(self.path)!r} has no sheet of cells", unchanged=UNCHANGED)
        if self._wanted is None:
            return next(iter(sheets.values()))
        if self._wanted not in sheets:
            raise DataError(
                f"{str(self.path)!r} has no sheet {self._wanted!r}; its sheets are {listed_columns(list(sheets))}"
                f"{nearest(self._wanted, list(sheets))}",
                unchanged=UNCHANGED,
                hint="--set sheet=NAME, or leave it out for the first",
            )
        return sheets[self._wanted]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The workbook; whatever openpyxl raises here is about this file."""
        try:
            with zipfile.ZipFile(self.path) as parts:
                check_parts(self.path, parts.infolist())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with closing(self._load(self.path, read_only=True, data_only=True, keep_links=False)) as book:
                    yield book
        except (LorabankError, MemoryError):
            raise
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{str(self.path)!r} is not a readable Excel workbook",
                unchanged=UNCHANGED,
                hint="save it as .xlsx without a password, or as CSV",
            ) from error
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DataError(
                f"{str(self.path)!r} is not a readable Excel workbook: {reason}",
                unchanged=UNCHANGED,
                hint="open it and save it again as .xlsx, or as CSV",
            ) from error


def check_parts(source: str | Path, parts: Iterable[Any]) -> None:
    """Refuse a workbook whose parts unpack to more than the limit; none gives more than it says."""
    total = sum(part.file_size for part in parts)
    if total > MAX_WORKBOOK:
        raise DataError(
            f"{str(source)!r} unpacks to {total:,} bytes; {MAX_WORKBOOK:,} is the limit for a workbook",
            unchanged=UNCHANGED,
            hint="save the sheet as CSV",
        )


def _shown(cell: Any) -> str:
    """A cell as its user sees it."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        return _number(value, cell.number_format or "")
    if isinstance(value, datetime):
        plain = value.replace(microsecond=0)
        return str(plain.date()) if plain.time() == time() else str(plain)
    return str(value) if isinstance(value, date | time | timedelta) else f"{value}"


def _number(value: float, form: str) -> str:
    """A number in one of the plain formats, ``0``, ``00000``, ``0.00``, ``#,##0.00``, ``0%``; else all its digits."""
    found = _NUMBER.fullmatch(form)
    if not found:
        text = f"{value:.{_DIGITS}g}"
        return str(int(value)) if "e" in text and value == int(value) and abs(value) < 10**_DIGITS else text
    thousands, zeros, decimals, percent = found.groups()
    places = len(decimals or ".") - 1
    text = f"{value * (100 if percent else 1):{',' if thousands else ''}.{places}f}"
    wide = len(zeros) + (places + 1 if places else 0)
    return (text.zfill(wide) if not thousands else text) + (percent or "")
