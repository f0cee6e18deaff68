"""The JSON reader: one list of objects, each entry named by its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabank.core.errors import DataError
from lorabank.data.formats.json_list import JsonList
from lorabank.data.loading import read_rows
from lorabank.data.rows import Rows


def read(path: Path, content: bytes) -> Rows:
    file = path / "data.json"
    file.write_bytes(content)
    return read_rows(file, text_column="text", label_column="label")


def test_entries_are_counted_from_one(tmp_path: Path) -> None:
    rows = read(
        tmp_path, b'\xef\xbb\xbf[{"text": "a", "label": 1},\r\n\r\n {"id": [], "label": "x", "text": "b"}\n]\n'
    )
    assert (rows.texts, rows.labels, rows.lines, rows.unit) == (("a", "b"), ("1", "x"), (1, 2), "entry")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": "a", "label": 1}', "line 1, column 1: expected a list of objects, found an object"),
        (b'{"text": "a"}\n{"text": "b"}\n', "line 1, column 1: expected a list of objects, found an object"),
        (b"3", "expected a list of objects, found a number"),
        (b"hello", "line 1, column 1: not JSON: expecting value"),
        (b" \n ", "not JSON: expecting value"),
        (b"[]", "has no rows"),
        (b"[", "line 1, column 2): not JSON: expecting value"),
        (b'[{"text": "a", "label": 1},\n 3]', "entry 2 (line 2, column 2): expected an object, found a number"),
        (b'[{"text": "a", "label": 1},\n]', "entry 2 (line 2, column 1): not JSON: expecting value"),
        (b'[{"text": "a", "label": 1}\n {"text": "b", "label": 1}]', "line 2, column 2, after entry 1: not JSON"),
        (b'[{"text": "a", "label": 1}', "line 1, column 27, after entry 1: not JSON: expecting ',' or ']'"),
        (b'[{"text": "a", "label": 1}]\n[]', "line 2, column 1: something follows the list"),
        (b'[{"text": "a", "label": 1},\n{"text": "NaN", "label": NaN}]', "entry 2 (line 2, column 26): NaN is not"),
        (b'[{"text": "a", "label": 1},\n{"text": "a", "text": "b"}]', "entry 2 (line 2, column 1): the key 'text'"),
        (b'[{"text": "a", "label": 1e999}]', "entry 1 (line 1, column 25): the number is too large"),
        (b'[{"text": "a", "label": 1},\n{"text": "b"}]', "entry 2: no column 'label'"),
        (b'[{"text": "a", "label": 1},\n{"text": null, "label": 1}]', "entry 2, column 'text': expected a text"),
        (b'[{"text": "a",\n "label": "\xff"}]', "line 2, byte 12: not UTF-8"),
        (b'[{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "entry 1 (line 1, column 2): nested too deeply"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert problem in caught.value.message
    assert "data.json" in caught.value.message
    assert "\n" not in caught.value.message


def test_json_lines_under_the_wrong_suffix_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, b'{"text": "a"}\n{"text": "b"}\n')
    assert ".jsonl" in (caught.value.hint or "")


def test_the_columns_are_told_without_parsing_the_rest(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b'[{"b": 1, "a": 2}, broken')
    assert JsonList()(tmp_path / "data.json").columns() == ("b", "a")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    cells=st.lists(VALUES, min_size=1, max_size=5),
    indent=st.none() | st.integers(0, 4),
    ascii_only=st.booleans(),
    space=st.text(" \t\r\n", max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_list_of_objects_is_read_as_json_reads_it(
    tmp_path: Path, cells: list[Any], indent: int | None, ascii_only: bool, space: str
) -> None:
    text = json.dumps([{"cell": cell} for cell in cells], indent=indent, ensure_ascii=ascii_only)
    (tmp_path / "data.json").write_bytes((space + text + space).encode("utf-8", "surrogatepass"))
    table = JsonList()(tmp_path / "data.json").read(("cell",), ("absent",))
    assert table.rows == [(cell, None) for cell in cells]
    assert table.lines == list(range(1, len(cells) + 1))
