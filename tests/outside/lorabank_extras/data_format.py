"""A data format: ``.records``, lines of a name and a value, and a blank line behind each record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabank.core.settings import setting
from lorabank.data.bad_rows import BadRow
from lorabank.data.formats.base import Reader, Table, bad_row
from lorabank.data.formats.jsonl import fill_table, first_keys
from lorabank.data.formats.lines import text_lines
from lorabank.data.formats.text_file import TextFile, TextFormat


@dataclass(frozen=True)
class Records(TextFormat):
    """Records of named values."""

    mark: str = setting(":", "What stands between a name and its value.")

    def __call__(self, path: Path) -> Reader:
        """The reader of a file."""
        return RecordReader(TextFile(path, self.encoding), self.mark)


class RecordReader:
    """A file of records."""

    def __init__(self, text: TextFile, mark: str) -> None:
        self._path = text.path
        self._text = text
        self._mark = mark

    @property
    def read_as(self) -> str:
        """What is not the plain default."""
        return self._text.read_as

    def columns(self) -> tuple[str, ...]:
        """The names of the first record."""
        return first_keys(str(self._path), self._records())

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The values of these names."""
        return fill_table(Table(str(self._path), (*columns, *optional)), self._records(), columns)

    def _records(self) -> Iterator[tuple[int, dict[str, object] | BadRow]]:
        record: dict[str, object] = {}
        start = last = 0
        with self._text.open() as file:
            for number, line in text_lines(file, self._path, self._text.undecodable):  # blank lines are left out
                if record and number > last + 1:
                    yield start, record
                    record = {}
                start, last = start if record else number, number
                name, mark, value = line.partition(self._mark) if isinstance(line, str) else ("", "", "")
                if isinstance(line, BadRow):
                    yield number, line
                elif not mark:
                    yield number, bad_row(self._path, f"line {number}", f"no {self._mark!r} behind a name")
                else:
                    record[name.strip()] = value.strip()
        if record:
            yield start, record
