"""Labelled texts one by one, in their order: from a file of JSON lines, or from a stream that may have no end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, cast

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError, NotFoundError
from lorabank.data.bad_rows import BadRow
from lorabank.data.formats.base import bad_row, missing_cell
from lorabank.data.formats.cells import BadCell, check_label, check_text
from lorabank.data.formats.jsonl import parse_line
from lorabank.data.formats.lines import text_lines
from lorabank.data.formats.text_file import TextFile
from lorabank.data.rows import Rows, shuffled_key


@dataclass(frozen=True)
class StreamRow:
    """A labelled text, and the number of its line from 1."""

    text: str
    label: str
    line: int

    def held_out(self, fraction: float, seed: int) -> bool:
        """Whether it is kept for evaluation: decided by its text alone, so that equal texts go to one side."""
        return int.from_bytes(shuffled_key(self.text, seed)[:8]) < fraction * 2**64


@dataclass
class Taken:
    """How far a stream was read: rows, and a digest over all of them in their order."""

    rows: int = 0
    sha256: str = field(default_factory=lambda: hashlib.sha256().hexdigest())

    def add(self, row: StreamRow) -> None:
        """One more row."""
        self.rows += 1
        said = json.dumps([row.text, row.label], ensure_ascii=False).encode()
        self.sha256 = hashlib.sha256(bytes.fromhex(self.sha256) + said).hexdigest()


def read_stream(config: TrainConfig, lines: BufferedIOBase | None) -> Iterator[StreamRow]:
    """The rows of a file of JSON lines, each read when it is asked for.

    Args:
        config: ``data`` names the file; ``text_column`` and ``label_column`` are the keys.
        lines: The bytes to read in the place of a file.

    Raises:
        NotFoundError: There is no such file.
        DataError: A line is not an object, lacks a key, or holds a wrong cell; names the line.
    """
    if lines is not None:
        yield from _rows(cast(BinaryIO, lines), config, lambda where: bad_row(config.data, where, "not UTF-8"))
        return
    file = TextFile(Path(config.data))
    if not file.path.is_file():
        raise NotFoundError(
            f"there is no file {config.data!r}",
            hint="give --data FILE, or --data - for standard input",
            unchanged="nothing was changed",
        )
    with file.open() as opened:
        yield from _rows(opened, config, file.undecodable)


def rows_of(rows: list[StreamRow], config: TrainConfig) -> Rows:
    """Some rows of a stream as those of a task."""
    return Rows(
        texts=tuple(row.text for row in rows),
        labels=tuple(row.label for row in rows),
        source=config.data,
        columns=(config.text_column, config.label_column),
        lines=tuple(row.line for row in rows),
        unit="line",
    )


def _rows(file: BinaryIO, config: TrainConfig, undecodable: Callable[[str], DataError]) -> Iterator[StreamRow]:
    for number, line in text_lines(file, config.data, undecodable):
        record = line if isinstance(line, BadRow) else parse_line(Path(config.data), number, line)
        if isinstance(record, BadRow):
            raise record
        for column in (config.text_column, config.label_column):
            if column not in record:
                raise missing_cell(config.data, f"line {number}", column, list(record))
        yield StreamRow(
            _checked(config, number, config.text_column, check_text, record[config.text_column]),
            _checked(config, number, config.label_column, check_label, record[config.label_column]),
            number,
        )


def _checked(config: TrainConfig, number: int, column: str, check: Callable[[object], str], cell: object) -> str:
    try:
        return check(cell)
    except BadCell as error:
        raise bad_row(config.data, f"line {number}, column {column!r}", error.problem, hint=error.hint) from error
