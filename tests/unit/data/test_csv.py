"""The CSV reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabank.core.errors import DataError
from lorabank.data.loading import read_rows
from lorabank.data.rows import Rows


def read(path: Path, content: bytes, text: str = "text", label: str = "label") -> Rows:
    file = path / "data.csv"
    file.write_bytes(content)
    return read_rows(file, text_column=text, label_column=label)


def test_lines_are_right_after_quoted_line_breaks(tmp_path: Path) -> None:
    content = b'id,label,text\n1,x,"first\nwith ""quotes"", and a comma"\n\n2,y,second\n'
    rows = read(tmp_path, content)
    assert rows.texts == ('first\nwith "quotes", and a comma', "second")
    assert rows.labels == ("x", "y")
    assert rows.lines == (2, 5)


def test_byte_order_mark_windows_line_ends_and_other_columns(tmp_path: Path) -> None:
    rows = read(tmp_path, b"\xef\xbb\xbfreview,stars\r\ngood, 5 \r\nbad,1\r\n", text="review", label="stars")
    assert rows.texts == ("good", "bad")
    assert rows.labels == ("5", "1"), "blanks around a label do not make another label"


def test_cells_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = read(tmp_path, b"text,label\nNA,1.0\n007,True\n")
    assert rows.texts == ("NA", "007")
    assert rows.labels == ("1.0", "True")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"text,label\na,1\nb\n", "line 3: 1 cells, but the header names 2 columns"),
        (b'text,label\n"a\nb",1\n"x"y,2\n', "line 4: not CSV"),
        (b'text,label\na,1\n"b,2\n', "line 3: not CSV: a quote is opened and never closed"),
        (b"text,label\na,1\nb,\xff\n", "line 3, byte 3: not UTF-8"),
        (b"text,label,text\na,1,b\n", "'text' appears twice"),
        (b"text:label\na:1\n", "no column 'text'; its columns are 'text:label'"),
        (b"text,label\na,1\n,2\n", "line 3, column 'text': the text is empty"),
        (b"text,label\na,1\nb,\n", "line 3, column 'label': the label is empty"),
        (b"text,label\n", "has no rows"),
        (b"text,label\na\x00b,1\n", "line 2, column 'text': a NUL character at position 2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert problem in caught.value.message
    assert "data.csv" in caught.value.message


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", b"text,label\ra,1\rb,2\r"),
        (".csv", b"text,label\na,1\rb,2\n"),
        (".jsonl", b'{"text": "a", "label": 1}\r{"text": "b", "label": 2}\r'),
        (".csv", b"text,label\r" + b"a,1\r" * 400_000),
        (".jsonl", b'{"text": "a", "label": 1}\r' * 60_000),
    ],
)
def test_carriage_returns_alone_are_told(tmp_path: Path, suffix: str, content: bytes) -> None:
    """An old Mac's line ends make one line of the whole file; the message says what to do about it."""
    file = tmp_path / f"data{suffix}"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(file, text_column="text", label_column="label")
    assert "line " in caught.value.message
    assert "a carriage return does not end a line" in (caught.value.hint or "")
