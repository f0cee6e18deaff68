"""Settings of formats: each is for the file whose format has it, and one that no file takes is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from lorabank.core.config import GenerateConfig, PredictConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError
from lorabank.data.formats.readers import Reading, format_name, open_reader
from lorabank.data.loading import TaskData, load_task_data

TRAIN = [(f"Gerät {i} läßt sich nicht öffnen", "ab"[i % 2]) for i in range(8)]
EVALUATION = [(f"größer {i}", "ab"[i % 2]) for i in range(4)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The training rows as a workbook's second sheet, the evaluation rows in two formats of text, as cp1252."""
    book = openpyxl.Workbook()
    book.active.append(["note"])
    sheet = book.create_sheet("tickets")
    for row in (("text", "label"), *TRAIN):
        sheet.append(row)
    book.save(tmp_path / "train.xlsx")
    cells = "".join(f"{text}:{label}\n" for text, label in EVALUATION)
    (tmp_path / "eval.csv").write_bytes(f"text:label\n{cells}".encode("cp1252"))
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in EVALUATION)
    (tmp_path / "eval.jsonl").write_bytes("".join(lines).encode("cp1252"))
    return {path.name: path for path in tmp_path.iterdir()}


def load(data: Path, evaluation: Path | None = None, **settings: Any) -> TaskData:
    return load_task_data(TrainConfig(data=str(data), eval_data=evaluation and str(evaluation), **settings))


@pytest.mark.parametrize(
    "given",
    [
        ("sheet=tickets", "delimiter=:", "encoding=cp1252"),
        (".xlsx.sheet=tickets", ".csv.delimiter=:", ".csv.encoding=cp1252"),
        ("*.sheet=tickets", "*.delimiter=:", "*.encoding=cp1252"),
        ("sheet=tickets", "encoding=latin-1", "delimiter=:", ".csv.encoding=cp1252"),
    ],
)
def test_two_files_of_different_formats_each_take_their_own(files: dict[str, Path], given: tuple[str, ...]) -> None:
    data = load(files["train.xlsx"], files["eval.csv"], set=given)
    assert list(zip(data.train.texts, data.train.labels, strict=True)) == TRAIN
    assert list(zip(data.eval.texts, data.eval.labels, strict=True)) == EVALUATION


def test_old_names_read_the_same_rows(files: dict[str, Path]) -> None:
    old = {"sheet": "tickets", "delimiter": ":", "encoding": "cp1252"}
    with pytest.warns(DeprecationWarning, match="is an old name: write --set "):
        config = TrainConfig(data=str(files["train.xlsx"]), eval_data=str(files["eval.csv"]), **old)
    new = load(files["train.xlsx"], files["eval.csv"], set=("sheet=tickets", "delimiter=:", "encoding=cp1252"))
    assert load_task_data(config) == new


@pytest.mark.parametrize("kind", [PredictConfig, GenerateConfig])
def test_so_do_those_of_files_that_are_answered(files: dict[str, Path], kind: Any) -> None:
    old = {"delimiter": ":", "encoding": "cp1252"}
    with pytest.warns(DeprecationWarning, match="is an old name: write --set "):
        config = kind(data=str(files["eval.csv"]), **old)
    table = open_reader(config.data, Reading.of(config)).read(["text"])
    assert [cells for (cells,) in table.rows] == [text for text, _ in EVALUATION]


@pytest.mark.parametrize(
    ("data", "evaluation", "given", "having"),
    [
        ("eval.csv", None, "sheet=tickets", ".xlsx"),
        ("eval.jsonl", "eval.csv", "sheet=tickets", ".xlsx"),
        ("eval.jsonl", None, "delimiter=:", ".csv, format .tsv and format .txt"),
        ("train.xlsx", None, "encoding=cp1252", ".json"),
    ],
)
def test_a_setting_that_no_file_takes_is_refused_and_its_formats_named(
    files: dict[str, Path], data: str, evaluation: str | None, given: str, having: str
) -> None:
    with pytest.raises(
        ConfigError, match=f"there is no setting '{given.partition('=')[0]}', which is one of "
    ) as told:
        load(files[data], evaluation and files[evaluation], set=(given,))  # type: ignore[arg-type]
    assert f"format {having}" in told.value.message
    assert "\n" not in told.value.message


def test_where_a_format_has_a_setting_its_value_is_judged(files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"delimiter: 'semicoln' cannot separate cells\. Did you mean"):
        load(files["eval.csv"], set=("delimiter=semicoln",))
    with pytest.raises(DataError, match="its sheets are 'Sheet', 'tickets'"):
        load(files["train.xlsx"], set=("sheet= tickets",))


def test_a_tab_is_a_delimiter_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text, more\tlabel\na, b\tc\n")
    for tab in ("\t", "tab", "\\t"):
        reader = open_reader(tmp_path / "x.csv", Reading(set=(f"delimiter={tab}",)))
        assert reader.columns() == ("text, more", "label")


def test_a_format_is_told_by_the_name() -> None:
    names = {"a.CSV": ".csv", "a.tar.gz": ".tar", "a.b.jsonl.GZ": ".jsonl", "a": "", "a.gz": ".gz", "x/y.d/a": ""}
    assert {name: format_name(name) for name in names} == names
