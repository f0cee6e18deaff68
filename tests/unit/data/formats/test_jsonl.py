"""The JSON lines reader: what it takes, and where it says that a line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabank.core.errors import DataError
from lorabank.data.formats.jsonl import JsonLines
from lorabank.data.loading import read_rows
from lorabank.data.rows import Rows

GOOD = b'{"text": "fine", "label": "x"}\n'


def read(path: Path, content: bytes) -> Rows:
    file = path / "data.jsonl"
    file.write_bytes(content)
    return read_rows(file, text_column="text", label_column="label")


def test_reads_rows_with_their_lines(tmp_path: Path) -> None:
    rows = read(tmp_path, GOOD + b"\n  \r\n" + b'{"label": "y", "id": [1, {"a": 2.5}], "text": "second"}')
    assert rows.texts == ("fine", "second")
    assert rows.labels == ("x", "y")
    assert rows.lines == (1, 4)
    assert (rows.columns, rows.source) == (("text", "label"), str(tmp_path / "data.jsonl"))


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    rows = read(tmp_path, b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 2)
    assert rows.texts == ("fine", "fine")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\\f"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, separator: str) -> None:
    line = f'{{"text": "one{separator}two", "label": "x"}}\n'.encode()
    rows = read(tmp_path, line + GOOD)
    assert len(rows) == 2
    assert rows.texts[0] in (f"one{separator}two", "one\x0ctwo")
    assert rows.lines == (1, 2)


@pytest.mark.parametrize(
    ("line", "where", "problem"),
    [
        (b'{"text": "NaN", "label": NaN}', "line 2, column 26", "NaN is not JSON"),
        (b'{"text": "a", "label": -Infinity}', "line 2, column 24", "-Infinity is not JSON"),
        (b'{"text": "1e400", "label": 1e400}', "line 2, column 28", "too large"),
        (b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "line 2, column 24", "too many digits"),
        (b'{"text": "a", "text": "b", "label": 1}', "line 2", "'text' appears twice"),
        (b'{"text": "a", "label": {"k": 1, "k": 2}}', "line 2", "'k' appears twice"),
        (b'{"text": "a", "label": }', "line 2, column 24", "not JSON"),
        (b'{"text": "a\x00b", "label": 1}', "line 2, column 12", "control character"),
        (b'{"text": "a\\u0000b", "label": 1}', "line 2, column 'text'", "NUL character at position 2"),
        (b'{"text": "ab\\ud800", "label": 1}', "line 2, column 'text'", "lone surrogate at position 3"),
        (b'{"text": "a", "label": "\\udfff"}', "line 2, column 'label'", "lone surrogate"),
        (b'{"text": "caf\xe9", "label": 1}', "line 2, byte 14", "not UTF-8"),
        (b'{"text": "a", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2", "nested too deeply"),
        (b'{"text": "' + b"a" * (1 << 20) + b'", "label": 1}', "line 2", "longer than"),
        (b'["a", 1]', "line 2", "expected an object, found a list"),
        (b"null", "line 2", "expected an object, found null"),
        (b'{"text": "a"}', "line 2", "no column 'label'"),
        (b'{"text": null, "label": 1}', "line 2, column 'text'", "found nothing (null)"),
        (b'{"text": 3, "label": 1}', "line 2, column 'text'", "expected a text, found 3"),
        (b'{"text": " ", "label": 1}', "line 2, column 'text'", "the text is empty"),
        (b'{"text": "a", "label": ""}', "line 2, column 'label'", "the label is empty"),
        (b'{"text": "a", "label": 0.5}', "line 2, column 'label'", "found 0.5"),
        (b'{"text": "a", "label": null}', "line 2, column 'label'", "found nothing (null)"),
        (b'{"text": "a", "label": ["x"]}', "line 2, column 'label'", "found a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, where: str, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, GOOD + line + b"\n" + GOOD)
    message = caught.value.message
    assert f"data.jsonl', {where}: " in message
    assert problem in message
    assert "\n" not in message
    assert caught.value.unchanged == "nothing was changed"


def test_a_column_that_the_file_does_not_have_lists_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no column 'text'; its columns are 'txt', 'label'\. Did you mean 'txt'\?"
    ) as e:
        read(tmp_path, b'{"txt": "a", "label": 1}\n')
    assert e.value.hint is not None
    assert "--text-column" in e.value.hint


def test_a_file_of_blank_lines_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path, b"\n\n \n")


def test_long_keys_are_cut_and_many_keys_cost_no_time(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"' + "k" * 100_000 + '": 1}\n')
    with pytest.raises(DataError, match="no column 'text'") as refused:
        JsonLines()(path).read(("text", "label"))
    assert len(refused.value.message) < 1600
    # 100,000 keys and the last of them again: comparing each with all before it would take minutes
    path.write_text("{" + ",".join(f'"{n:x}":1' for n in range(80_000)) + ',"0":1}\n')
    with pytest.raises(DataError, match="the key '0' appears twice"):
        JsonLines()(path).columns()
    path.write_text("{" + ",".join(f'"{n:x}":1' for n in range(80_000)) + ',"1387f":1}\n')
    with pytest.raises(DataError, match="the key '1387f' appears twice"):
        JsonLines()(path).columns()
