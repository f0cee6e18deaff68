"""JSON: one list of objects, UTF-8, read strictly and entry by entry, so that a bad entry can be named.

Only a part of the file lies in memory: an entry has the limit of a line in a .jsonl file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_LINE
from lorabank.data.formats import Table, bad_row, missing_column, too_long
from lorabank.data.strict_json import BYTE_ORDER_MARK, DECODER, KINDS, Refused, offset_of, problem_of

_BLANKS = re.compile(r"[ \t\n\r]*")
_SHAPE = "write a list of objects, [{...}, {...}], or one object a line in a .jsonl file"
_CUT = 16
"""An error so near to the end of what was read may only say that a value goes on behind it."""


class JsonList:
    """A JSON file that holds a list of objects; a byte order mark is accepted.

    Every method raises DataError where the file is not that, with the entry's number from 1, line and column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> tuple[str, ...]:
        """The keys of the first object; nothing behind it is parsed."""
        with closing(self._entries()) as entries:
            return next((tuple(record) for _, record in entries), ())

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The values of these keys, as Python values; None for an optional one that an object lacks.

        Raises:
            DataError: An entry lacks one of ``columns``.
        """
        with closing(self._entries()) as entries:  # at once, not when the error that ends it is forgotten
            return self._table(entries, columns, optional)

    def _table(
        self, entries: Iterable[tuple[int, dict[str, Any]]], columns: Sequence[str], optional: Sequence[str]
    ) -> Table:
        table = Table(str(self.path), (*columns, *optional), unit="entry")
        for number, record in entries:
            absent = [column for column in columns if column not in record]
            if absent:
                where = f"entry {number}" if table.rows else ""
                raise missing_column(self.path, absent[0], list(record), where=where)
            table.add(number, tuple(record.get(column) for column in table.columns))
        return table

    def _entries(self) -> Generator[tuple[int, dict[str, Any]]]:
        """Number, from 1, and object of each entry."""
        with self.path.open("rb") as file:
            text = _Text(self.path, file)
            if text.peek() != "[":
                problem = f"expected a list of objects, found {KINDS[type(text.value(''))]}"
                raise bad_row(self.path, text.place(text.began), problem, hint=_SHAPE)
            text.at += 1
            number = 0
            while text.peek() != "]" or number:
                number += 1
                value = text.value(f"entry {number}")
                if not isinstance(value, dict):
                    where = f"entry {number} ({text.place(text.began)})"
                    raise bad_row(self.path, where, f"expected an object, found {KINDS[type(value)]}", hint=_SHAPE)
                yield number, value
                if text.peek() != ",":
                    break
                text.at += 1
                text.peek()
            self._check_end(text, number)

    def _check_end(self, text: _Text, number: int) -> None:
        if text.peek() != "]":
            raise bad_row(self.path, f"{text.place(text.at)}, behind entry {number}", "not JSON: expecting ',' or ']'")
        text.at += 1
        if text.peek():
            raise bad_row(self.path, text.place(text.at), "something follows the list", hint=_SHAPE)


class _Text:
    """The text of a file, of which a few rows' worth lies in memory.

    Attributes:
        at: The next character, counted in the part that lies in memory.
        began: Where the last value began.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.at = self.began = 0
        self._file = file
        self._text = ""
        self._line, self._column = 1, 1  # of the first character in memory
        self._ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
            file.seek(0)
        self._start = file.tell()

    def peek(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            match = _BLANKS.match(self._text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self._text) or self._ended:
                return self._text[self.at : self.at + 1]
            self._fill()

    def place(self, at: int) -> str:
        """Line and column of a character, from 1."""
        before = self._text.rfind("\n", 0, at)
        column = at - before if before >= 0 else self._column + at
        return f"line {self._line + self._text.count(chr(10), 0, at)}, column {column}"

    def value(self, entry: str) -> Any:
        """The value that begins here; ``at`` is behind it then."""
        self._fill()
        start = self.began = self.at
        try:
            found, end = DECODER.raw_decode(self._text, start)
        except Refused as error:
            position = offset_of(error.token, self._text, start) if error.token else start
            raise self._bad(entry, position, str(error)) from error
        except json.JSONDecodeError as error:
            if not self._ended and (error.pos > len(self._text) - _CUT or error.msg.startswith("Unterminated")):
                raise self._too_long(entry) from error
            raise self._bad(entry, error.pos, problem_of(error)) from error
        except RecursionError as error:
            raise self._bad(entry, start, "nested too deeply") from error
        if (end - start) * 4 > MAX_LINE and len(self._text[start:end].encode("utf-8", "surrogatepass")) > MAX_LINE:
            raise self._too_long(entry)
        self.at = end
        return found

    def _bad(self, entry: str, position: int, problem: str) -> DataError:
        place = self.place(position)
        return bad_row(self.path, f"{entry} ({place})" if entry else place, problem)

    def _too_long(self, entry: str) -> DataError:
        place = self.place(self.began)
        return too_long(self.path, f"{entry} ({place})" if entry else place, "")

    def _fill(self) -> None:
        """Read on until a whole row lies in memory, and forget what is behind us."""
        if self._ended or len(self._text) - self.at > MAX_LINE:
            return
        before = self._text.rfind("\n", 0, self.at)
        self._column = self.at - before if before >= 0 else self._column + self.at
        self._line += self._text.count("\n", 0, self.at)
        parts, self.at = [self._text[self.at :]], 0
        while not self._ended and sum(map(len, parts)) <= MAX_LINE:
            raw = self._file.read(MAX_LINE)
            self._ended = not raw
            try:
                parts.append(self._decoder.decode(raw, final=self._ended))
            except UnicodeDecodeError as error:
                where = self._byte_place(self._file.tell() - len(error.object) + error.start)
                raise bad_row(self.path, where, "not UTF-8", hint="save the file as UTF-8") from error
        self._text = "".join(parts)

    def _byte_place(self, offset: int) -> str:
        """Line and byte of an offset in the file, from 1."""
        self._file.seek(self._start)
        line, byte, left = 1, 1, offset - self._start
        while left and (raw := self._file.read(min(left, MAX_LINE))):
            left -= len(raw)
            line += raw.count(b"\n")
            byte = len(raw) - raw.rfind(b"\n") if b"\n" in raw else byte + len(raw)
        return f"line {line}, byte {byte}"
