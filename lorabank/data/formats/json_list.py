"""JSON: one list of objects, UTF-8, read strictly and entry by entry, so that a bad entry can be named.

Only a part of the file lies in memory: an entry has the limit of a line in a .jsonl file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lorabank.core.errors import DataError
from lorabank.core.limits import MAX_LINE
from lorabank.data.bad_rows import BadRow
from lorabank.data.formats.base import Table, bad_row, too_long
from lorabank.data.formats.jsonl import every_key, fill_table, first_keys
from lorabank.data.formats.strict_json import BYTE_ORDER_MARK, DECODER, KINDS, Refused, offset_of, problem_of
from lorabank.data.formats.text_file import TextFile, TextFormat

_BLANKS = re.compile(r"[ \t\n\r]*")
_SHAPE = "write a list of objects, [{...}, {...}], or one object a line in a .jsonl file"
_LENIENT = json.JSONDecoder()
_CUT = 16
"""An error so near to the end of what was read may only mean that a value continues behind it."""


@dataclass(frozen=True)
class JsonList(TextFormat):
    """JSON: one list of objects."""

    def __call__(self, path: Path) -> JsonListFile:
        """The reader of a file."""
        return JsonListFile(TextFile(path, self.encoding))


class JsonListFile:
    """A JSON file that holds a list of objects; a byte order mark is accepted.

    Every method raises DataError where the file is not that, with the entry's number from 1, line and column.
    """

    def __init__(self, text: TextFile) -> None:
        self.path = text.path
        self._source = text

    @property
    def read_as(self) -> str:
        """What is not the plain default."""
        return self._source.read_as

    def columns(self) -> tuple[str, ...]:
        """The keys of the first object; nothing behind it is parsed.

        Raises:
            DataError: No entry is an object.
        """
        with closing(self._entries()) as entries:
            return first_keys(str(self.path), entries)

    def all_columns(self) -> tuple[str, ...]:
        """The keys of all objects, in the order in which they appear."""
        with closing(self._entries()) as records:
            return every_key(str(self.path), records)

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The values of these keys, as Python values; None for an optional one that an object lacks.

        Raises:
            DataError: The first entry lacks one of ``columns``; where another does, it is a bad row.
        """
        with closing(self._entries()) as entries:  # at once, not when the error that ends it is forgotten
            return fill_table(Table(str(self.path), (*columns, *optional), unit="entry"), entries, columns)

    def _entries(self) -> Generator[tuple[int, dict[str, Any] | BadRow]]:
        """Number, from 1, and object of each entry."""
        with self._source.open() as file:
            text = _Text(self._source, file)
            if text.peek() != "[":
                value = text.value("")
                problem = f"expected a list of objects, found {KINDS[type(value)]}"
                raise bad_row(self.path, text.place(text.began), problem, hint=_SHAPE)
            text.at += 1
            number = 0
            while text.peek() != "]" or number:
                number += 1
                value = text.value(f"entry {number}")
                if isinstance(value, dict | BadRow):
                    yield number, value
                else:
                    where = f"entry {number} ({text.place(text.began)})"
                    problem = f"expected an object, found {KINDS[type(value)]}"
                    yield number, bad_row(self.path, where, problem, hint=_SHAPE)
                if text.peek() != ",":
                    break
                text.at += 1
                text.peek()
            self._check_end(text, number)

    def _check_end(self, text: _Text, number: int) -> None:
        if text.peek() != "]":
            raise bad_row(self.path, f"{text.place(text.at)}, after entry {number}", "not JSON: expecting ',' or ']'")
        text.at += 1
        if text.peek():
            raise bad_row(self.path, text.place(text.at), "something follows the list", hint=_SHAPE)


class _Text:
    """The text of a file, of which a few rows' worth lies in memory.

    Attributes:
        at: The next character, counted in the part that lies in memory.
        began: Where the last value began.
    """

    def __init__(self, source: TextFile, file: BinaryIO) -> None:
        self.path = source.path
        self.at = self.began = 0
        self._source = source
        self._file = file
        self._text = ""
        self._line, self._column = 1, 1  # of the first character in memory
        self._ended = False
        self._begun = False
        self._held = b""  # the beginning of a character
        self._raw_line, self._raw_byte = 1, 1  # of the first byte that was not decoded

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
        """The value that begins here, or a bad row where JSON alone would take it; ``at`` is behind it then."""
        self._fill()
        start = self.began = self.at
        try:
            found, end = DECODER.raw_decode(self._text, start)
        except Refused as error:
            position = offset_of(error.token, self._text, start) if error.token else start
            found = self._bad(entry, position, str(error))
            end = self._end_of_refused(start, found)
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

    def _end_of_refused(self, start: int, found: DataError) -> int:
        """Where a value ends that is only not strict.

        Raises:
            DataError: ``found``, where the rest of it is no JSON either.
        """
        try:
            return _LENIENT.raw_decode(self._text, start)[1]
        except (ValueError, RecursionError):
            raise found from None

    def _bad(self, entry: str, position: int, problem: str) -> BadRow:
        place = self.place(position)
        return bad_row(self.path, f"{entry} ({place})" if entry else place, problem)

    def _too_long(self, entry: str) -> BadRow:
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
            raw = self._held + (raw if self._begun else raw.removeprefix(BYTE_ORDER_MARK))
            self._begun = True
            try:
                text, used = codecs.utf_8_decode(raw, "strict", self._ended)
            except UnicodeDecodeError as error:
                self._pass(raw[: error.start])
                place = f"line {self._raw_line}, byte {self._raw_byte}"
                raise self._source.undecodable(place) from error
            self._pass(raw[:used])
            self._held = raw[used:]
            parts.append(text)
        self._text = "".join(parts)

    def _pass(self, raw: bytes) -> None:
        """Count bytes that are behind us."""
        self._raw_byte = len(raw) - raw.rfind(b"\n") if b"\n" in raw else self._raw_byte + len(raw)
        self._raw_line += raw.count(b"\n")
