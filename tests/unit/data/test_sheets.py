"""Columns under other names, and the names of a file's columns without its rows."""

from __future__ import annotations

import json
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.shelves import FORMATS
from lorabank.data.formats.readers import open_reader
from lorabank.data.loading import load_task_data
from lorabank.data.sheets import open_sheet

ROWS = [{"body": f"text {i}", "kind": "ab"[i % 2], "id": str(i)} for i in range(8)]


def write(folder: Path, suffix: str, rows: list[dict[str, str]]) -> Path:
    file = folder / f"data{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == ".xlsx":
        book = openpyxl.Workbook()
        for cells in ([*rows[0]], *([*row.values()] for row in rows)):
            book.active.append(cells)
        book.save(file)
    elif suffix in (".csv", ".tsv", ".txt"):
        between = "," if suffix == ".csv" else "\t"
        lines = [between.join(row.values()) for row in rows]
        file.write_text("\n".join([between.join(rows[0]), *lines]) + "\n")
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_tells_its_columns_and_reads_an_absent_optional_one_as_nothing(
    tmp_path: Path, suffix: str
) -> None:
    reader = open_reader(write(tmp_path, suffix, ROWS))
    assert reader.columns() == ("body", "kind", "id")
    table = reader.read(("id", "body"), ("input", "kind"))
    assert table.columns == ("id", "body", "input", "kind")
    assert table.rows[3] == ("3", "text 3", None, "b")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_renamed_column_is_read_as_if_the_file_had_its_name(tmp_path: Path, suffix: str) -> None:
    renamed = load_task_data(TrainConfig(data=str(write(tmp_path, suffix, ROWS)), map=("body=text", "kind=label")))
    (tmp_path / "plain").mkdir()
    names = {"body": "text", "kind": "label", "id": "id"}
    plain = write(tmp_path / "plain", suffix, [{names[key]: cell for key, cell in row.items()} for row in ROWS])
    same = load_task_data(TrainConfig(data=str(plain)))
    assert (renamed.train.sha256, renamed.eval.sha256) == (same.train.sha256, same.eval.sha256)
    assert renamed.train.columns == ("body", "kind"), "the file's own names are recorded"


def test_renaming_comes_before_everything_else(tmp_path: Path) -> None:
    file = write(tmp_path, ".csv", ROWS)
    data = load_task_data(
        TrainConfig(data=str(file), map=("body=content", "kind=k"), text_column="content", label_column="k")
    )
    assert data.labels == ("a", "b")


def test_two_columns_can_change_names(tmp_path: Path) -> None:
    sheet = open_sheet(write(tmp_path, ".csv", ROWS), ("body=kind", "kind=body"))
    assert sheet.columns == ("kind", "body", "id")
    assert sheet.read(("body", "kind")).rows[1] == ("b", "text 1")


def test_an_error_in_a_renamed_column_names_the_column_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, ".csv", [*ROWS, {"body": " ", "kind": "a", "id": "9"}])
    with pytest.raises(DataError, match=r"line 10, column 'body': the text is empty"):
        load_task_data(TrainConfig(data=str(file), map=("body=text", "kind=label")))


def test_a_column_that_was_renamed_away_is_gone(tmp_path: Path) -> None:
    sheet = open_sheet(write(tmp_path, ".csv", ROWS), ("body=text",))
    with pytest.raises(DataError, match=r"no column 'body'; its columns are 'text', 'kind', 'id'"):
        sheet.read(("body",))


def test_an_unknown_column_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'bodyx'; its columns are .*\. Did you mean 'body'\?") as caught:
        open_sheet(write(tmp_path, ".jsonl", ROWS), ("bodyx=text",))
    assert "--map" in (caught.value.hint or "")


def test_a_new_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a column 'kind' already, so 'body' cannot be read"):
        open_sheet(write(tmp_path, ".csv", ROWS), ("body=kind",))


@pytest.mark.parametrize(
    ("renames", "problem"),
    [
        (("text",), "must have the form old=new"),
        (("=text",), "must have the form old=new"),
        (("body= ",), "must have the form old=new"),
        (("body=a", "body=b"), "the column 'body' is renamed twice"),
        (("body=a", "kind=a"), "the column 'a' is given as a new name twice"),
    ],
)
def test_a_renaming_that_says_nothing_is_refused(tmp_path: Path, renames: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_sheet(write(tmp_path, ".csv", ROWS), renames)


def test_a_name_of_the_hub_that_stands_like_a_file_is_told_how_to_be_written() -> None:
    with pytest.raises(NotFoundError) as caught:
        open_sheet("owner/name")
    assert "hf:owner/name" in (caught.value.hint or "")
