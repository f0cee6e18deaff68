"""Excel workbooks, made here by openpyxl."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime, time
from pathlib import Path

import openpyxl
import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError, MissingExtraError
from lorabank.data.formats.readers import Reading
from lorabank.data.formats.workbook import Workbook
from lorabank.data.loading import load_task_data, read_rows


def book(path: Path, rows: Sequence[Sequence[object]], **more: Sequence[Sequence[object]]) -> Path:
    made = openpyxl.Workbook()
    made.active.title = "first"
    for row in rows:
        made.active.append(row)
    for title, cells in more.items():
        sheet = made.create_sheet(title)
        for row in cells:
            sheet.append(row)
    made.save(path)
    return path


LABELLED = [["Text", "Label"], *([f"text {i}", i % 2] for i in range(10))]


def test_a_workbook_is_trained_on_like_the_csv_that_excel_saves(tmp_path: Path) -> None:
    data = load_task_data(TrainConfig(data=str(book(tmp_path / "x.xlsx", LABELLED))))
    (tmp_path / "x.csv").write_text("Text,Label\n" + "".join(f"text {i},{i % 2}\n" for i in range(10)))
    same = load_task_data(TrainConfig(data=str(tmp_path / "x.csv")))
    assert (data.train.sha256, data.eval.sha256) == (same.train.sha256, same.eval.sha256)
    assert data.train.unit == "row"


def test_a_sheet_is_named_and_where_there_are_several_the_first_is_said(tmp_path: Path) -> None:
    path = book(tmp_path / "x.xlsx", [["note"], ["not here"]], tickets=LABELLED)
    data = load_task_data(TrainConfig(data=str(path), set=("sheet=tickets",)))
    assert data.notes[0] == f"{str(path)!r} is read as sheet 'tickets' of 2"
    with pytest.raises(DataError, match=r"no sheet 'tickts'; its sheets are 'first', 'tickets'\. Did you mean"):
        load_task_data(TrainConfig(data=str(path), set=("sheet=tickts",)))
    assert "sheet 'first' of 2" in Workbook()(path).read_as


def test_a_cell_is_what_its_user_sees(tmp_path: Path) -> None:
    made = openpyxl.Workbook()
    sheet = made.active
    shown = [
        (5, "General", "5"), (0.1 + 0.2, "General", "0.3"), (1e20, "General", "1e+20"), (True, "General", "TRUE"),
        (1234.5, "0.00", "1234.50"), (1234567.891, "#,##0.00", "1,234,567.89"), (0.125, "0.0%", "12.5%"),
        (4109, "00000", "04109"), (-3, "0", "-3"), ("007", "General", "007"), (12345678901, "General", "12345678901"),
        (datetime(2026, 11, 28), "dd.mm.yyyy", "2026-11-28"), (date(2026, 11, 28), "yyyy-mm-dd", "2026-11-28"),
        (datetime(2026, 11, 28, 13, 45), "yyyy-mm-dd hh:mm", "2026-11-28 13:45:00"),
        (time(8, 30), "hh:mm", "08:30:00"),
        ("a\nb", "General", "a\nb"), (None, "General", ""),
    ]  # fmt: skip
    sheet.append(["nr", "cell"])
    for number, (value, form, _) in enumerate(shown, start=2):
        sheet.cell(number, 1, number)
        sheet.cell(number, 2, value).number_format = form
    made.save(tmp_path / "x.xlsx")
    assert [row[0] for row in Workbook()(tmp_path / "x.xlsx").read(["cell"]).rows] == [text for *_, text in shown]


def test_empty_rows_are_passed_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    path = book(tmp_path / "x.xlsx", [[], ["id", "text", None, None], [], [1, "a"], [], [2, "b", "beside"]])
    rows = read_rows(path, text_column="text", label_column=None)
    assert (rows.texts, rows.lines) == (("a", "b"), (4, 6))


def test_bad_rows_are_named_by_their_row_and_can_be_left_out(tmp_path: Path) -> None:
    path = book(tmp_path / "x.xlsx", [*LABELLED, ["no label", None], [None, 1]])
    with pytest.raises(DataError, match=r"2 bad rows: row 12, column 'Label': the label is empty; row 13"):
        load_task_data(TrainConfig(data=str(path)))
    data = load_task_data(TrainConfig(data=str(path), skip_bad=True))
    assert len(data.train) + len(data.eval) == 10


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 and no more", b"not a workbook", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600]
)
def test_what_is_no_workbook_is_bad_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.xlsx").write_bytes(content)
    with pytest.raises(DataError, match="not a readable Excel workbook") as caught:
        Workbook()(tmp_path / "x.xlsx").columns()
    assert "CSV" in (caught.value.hint or "")


def test_broken_parts_are_bad_data(tmp_path: Path) -> None:
    good = book(tmp_path / "x.xlsx", LABELLED)
    with zipfile.ZipFile(good) as parts:
        content = {name: parts.read(name) for name in parts.namelist()}
    for name in content:
        with zipfile.ZipFile(tmp_path / "y.xlsx", "w") as parts:
            for other, data in content.items():
                parts.writestr(other, data[: len(data) // 2] if other == name else data)
        with suppress(DataError):  # and nothing else
            Workbook()(tmp_path / "y.xlsx").read(["Text"])


def test_a_row_that_claims_a_far_place_costs_no_more_than_the_limit_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorabank.data.formats import workbook

    monkeypatch.setattr(workbook, "MAX_ROWS", 1000)
    good = book(tmp_path / "x.xlsx", LABELLED)
    with zipfile.ZipFile(good) as parts, zipfile.ZipFile(tmp_path / "y.xlsx", "w") as out:
        for name in parts.namelist():
            out.writestr(name, parts.read(name).replace(b'<row r="11"', b'<row r="999999999999"'))
    assert len(Workbook()(tmp_path / "y.xlsx").read(["Text"]).rows) <= 10


def test_without_the_package_the_command_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = book(tmp_path / "x.xlsx", LABELLED)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match="openpyxl") as caught:
        read_rows(path, text_column="Text", label_column=None, reading=Reading())
    assert 'pip install "openpyxl' in (caught.value.hint or "")
