"""Parquet: the reader, and the bytes that the bank keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorabank.core.errors import DamagedError, DataError
from lorabank.data.formats.parquet import from_parquet, to_parquet
from lorabank.data.loading import read_rows
from lorabank.data.rows import Rows


def read(path: Path, **columns: Any) -> Rows:
    file = path / "data.parquet"
    pq.write_table(pa.table(columns), file)
    return read_rows(file, text_column="text", label_column="label")


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (pa.array(["x", "y"]), ("x", "y")),
        (pa.array(["x", "y"]).dictionary_encode(), ("x", "y")),
        (pa.array([0, -3], pa.int8()), ("0", "-3")),
        (pa.array([1.0, 2.0]), ("1", "2")),
        (pa.array([True, False]), ("true", "false")),
    ],
)
def test_labels_of_every_type_become_strings(tmp_path: Path, cells: pa.Array, labels: tuple[str, ...]) -> None:
    rows = read(tmp_path, text=["a", "b"], label=cells, extra=[[1], [2]])
    assert rows.labels == labels
    assert rows.lines == (1, 2)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"text": ["a", None], "label": [0, 1]}, "row 2, column 'text': expected a text, found nothing (null)"),
        ({"text": ["a", "b"], "label": [0, None]}, "row 2, column 'label'"),
        ({"text": ["a", "b"], "label": [0.0, 1.5]}, "row 2, column 'label'"),
        ({"text": [1, 2], "label": [0, 1]}, "row 1, column 'text': expected a text, found 1"),
        ({"text": ["a"], "label": [[0]]}, "the column 'label' holds list"),
        ({"text": [[{"role": "user"}]], "label": [0]}, "row 1, column 'text': expected a text, found a list"),
        ({"text": ["a"], "lable": [0]}, "no column 'label'; its columns are 'text', 'lable'. Did you mean 'lable'?"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "has no rows"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, **columns)
    assert problem in caught.value.message


@pytest.mark.parametrize("content", [b"x", b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_a_broken_file_is_bad_data(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "data.parquet"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not a readable Parquet file") as caught:
        read_rows(file, text_column="text", label_column=None)
    assert "\n" not in caught.value.message


def rows(source: str = "a.csv", labels: tuple[str, ...] = ("x", "y")) -> Rows:
    return Rows(texts=("Grüße\n", "b"), labels=labels, source=source, columns=("text", "label"), lines=(2, 9))


@pytest.mark.parametrize("labels", [("x", "y"), ()])
def test_stored_rows_come_back(labels: tuple[str, ...]) -> None:
    back = from_parquet(to_parquet(rows(labels=labels)))
    assert (back.texts, back.labels) == (("Grüße\n", "b"), labels)
    assert back.sha256 == rows(labels=labels).sha256


def test_stored_bytes_depend_on_the_rows_alone() -> None:
    assert to_parquet(rows("here.csv")) == to_parquet(rows("there/other.jsonl"))
    assert to_parquet(rows()) != to_parquet(rows(labels=("x", "z")))


def test_damaged_stored_rows_are_refused() -> None:
    with pytest.raises(DamagedError):
        from_parquet(to_parquet(rows())[:-20])
