"""Answers in files: rows keep what they hold, get the answers they have alone, and a file is written whole or not."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lorabank_cli.main import main

from lorabank import api
from lorabank.core.config import ComposeConfig, GenerateConfig, PredictConfig
from lorabank.core.errors import ConfigError, DataError, ExistsError, NotFoundError
from lorabank.workflows.asking import answer_rows
from lorabank.workflows.asking.questions import Prompts, Question

TEXTS = ["a b c", "x, y; z", 'say "q"\nr s', "tab\there", "m n", "p q r s t"]
ROWS = [{"id": f"00{i}", "text": text, "label": "mine", "row": i} for i, text in enumerate(TEXTS)]
ADDED = ("lorabank_row", "predicted_label", "probability", "task", "margin")


@pytest.fixture(scope="module")
def routed(make_lab: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(make_lab("bert").bank("olora", 2), tmp_path_factory.mktemp("routed") / "bank")
    api.compose(copy, ComposeConfig(mode="prototype", name="routed"))
    return copy


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("source", [".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("form", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_rows_keep_their_columns_and_get_the_answers_they_have_alone(
    tmp_path: Path, routed: Path, source: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_rows, "PART", 4)
    data, target = write(tmp_path / f"in{source}", ROWS), tmp_path / f"out{form}"
    config = PredictConfig(data=str(data), composition="routed")
    result = api.answer_file(routed, target, config=config)
    assert (result.rows, result.answered, result.format) == (len(ROWS), len(ROWS), form[1:])
    found = read(target)
    assert list(found[0]) == ["id", "text", "label", "row", *ADDED]
    assert [row["text"] for row in found] == TEXTS
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]
    assert [int(row["row"]) for row in found] == [*range(len(ROWS))]
    assert [int(row["lorabank_row"]) for row in found] == [*range(1, len(ROWS) + 1)]
    alone = api.predict(routed, TEXTS, PredictConfig(composition="routed"))
    assert [(row["predicted_label"], row["task"]) for row in found] == [(one.label, one.task) for one in alone]
    for row, one in zip(found, alone, strict=True):
        assert float(row["probability"]) == pytest.approx(one.probability)
        assert float(row["margin"]) == pytest.approx(one.margin)  # type: ignore[attr-defined]
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_kinds_of_cells_are_kept_in_json_lines_and_parquet(tmp_path: Path, routed: Path) -> None:
    rows = [
        {
            "text": "a b",
            "n": 1,
            "x": 0.5,
            "yes": True,
            "tags": ["u", "v"],
            "more": {"k": [1, 2]},
            "day": date(2026, 1, 2),
        },
        {"text": "c d", "n": None, "x": None, "yes": None, "tags": [], "more": None, "day": None},
    ]
    data = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    for name in ("out.parquet", "out.jsonl"):
        api.answer_file(routed, tmp_path / name, config=PredictConfig(data=str(data), task="one"))
    kept = [{key: row[key] for key in rows[0]} for row in read(tmp_path / "out.parquet")]
    assert kept == rows
    kept = [{key: row[key] for key in rows[0]} for row in read(tmp_path / "out.jsonl")]
    assert kept == [{**rows[0], "day": "2026-01-02"}, rows[1]]


def test_objects_with_further_keys_lose_none(tmp_path: Path, routed: Path) -> None:
    rows = [{"text": "a b"}, {"late": [1], "text": "c d"}, {"text": "e f", "other": "x"}]
    data = write(tmp_path / "in.jsonl", rows)
    api.answer_file(routed, tmp_path / "out.jsonl", config=PredictConfig(data=str(data), task="one"))
    found = read(tmp_path / "out.jsonl")
    assert list(found[0])[:3] == ["text", "late", "other"]
    assert [(row["late"], row["other"]) for row in found] == [(None, None), ([1], None), (None, "x")]


def test_bad_rows_are_named_or_kept_without_an_answer(tmp_path: Path, routed: Path) -> None:
    (tmp_path / "in.csv").write_text("id;text\n1;a b\n2;\n3;c d\n4\n5;e f\n6;g h\n")
    config = PredictConfig(data=str(tmp_path / "in.csv"), composition="routed")
    with pytest.raises(DataError, match=r"2 bad rows: line 3, column 'text': the text is empty; line 5: 1 cells"):
        api.answer_file(routed, tmp_path / "out.csv", config=config)
    assert not (tmp_path / "out.csv").exists()
    skipping = PredictConfig(data=str(tmp_path / "in.csv"), composition="routed", skip_bad=True)
    result = api.answer_file(routed, tmp_path / "out.csv", config=skipping)
    assert (result.rows, result.answered) == (6, 4)
    found = read(tmp_path / "out.csv")
    assert [row["row"] for row in found] == [*"123456"]
    assert [row["id"] for row in found] == ["1", "2", "3", "", "5", "6"]
    assert [row["problem"] for row in found] == [
        "", "line 3, column 'text': the text is empty", "", "line 5: 1 cells, but the header names 2 columns", "", "",
    ]  # fmt: skip
    assert [bool(row["predicted_label"]) for row in found] == [True, False, True, False, True, True]


def test_a_file_is_replaced_only_where_that_is_said(tmp_path: Path, routed: Path) -> None:
    data, target = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    config = PredictConfig(data=str(data), task="one")
    target.write_text("precious")
    with pytest.raises(ExistsError, match="already exists") as caught:
        api.answer_file(routed, target, config=config)
    assert "--overwrite" in (caught.value.hint or "")
    assert target.read_text() == "precious"
    api.answer_file(routed, target, config=config, overwrite=True)
    assert len(read(target)) == len(ROWS)
    with pytest.raises(ConfigError, match="is the file that is read"):
        api.answer_file(routed, data, config=config, overwrite=True)
    with pytest.raises(ConfigError, match="is inside the bank"):
        api.answer_file(routed, routed / "x.csv", config=config)
    with pytest.raises(NotFoundError, match="there is no folder"):
        api.answer_file(routed, tmp_path / "no" / "x.csv", config=config)
    with pytest.raises(ConfigError, match=r"no file format ends in 'xml'"):
        api.answer_file(routed, tmp_path / "x.xml", config=config)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ExistsError, match="is a folder"):
        api.answer_file(routed, tmp_path / "folder.csv", config=config, overwrite=True)


def test_what_fails_on_the_way_leaves_what_was_there(
    tmp_path: Path, routed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, target = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    target.write_text("precious")

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(answer_rows, "answer_cells", broken)
    with pytest.raises(KeyboardInterrupt):
        api.answer_file(routed, target, config=PredictConfig(data=str(data), task="one"), overwrite=True)
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_generated_answers_stand_beside_their_prompts(tmp_path: Path, make_lab: Callable[[str], Any]) -> None:
    bank = make_lab("llama").bank("olora", 1)
    data = write(tmp_path / "in.jsonl", [{"text": "a b c", "id": 7}, {"text": "x y z", "id": 8}])
    config = GenerateConfig(data=str(data), task="one", max_new_tokens=3)
    api.answer_file(bank, tmp_path / "out.jsonl", config=config)
    found = read(tmp_path / "out.jsonl")
    said = api.generate(bank, ["a b c", "x y z"], GenerateConfig(task="one", max_new_tokens=3))
    assert [(row["id"], row["row"], row["answer"], row["task"]) for row in found] == [
        (7, 1, said[0].label, "one"),
        (8, 2, said[1].label, "one"),
    ]


def test_a_text_that_cannot_be_asked_is_named_by_its_row(
    tmp_path: Path, routed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind the first part; a chat template refuses texts that spell its control tokens."""
    monkeypatch.setattr(answer_rows, "PART", 4)
    routed_text = Prompts.routed

    def refusing(prompts: Prompts, question: Question, tasks: Any) -> str:
        if question.text in ("m n", TEXTS[0]):
            raise DataError("a control token")
        return routed_text(prompts, question, tasks)

    monkeypatch.setattr(Prompts, "routed", refusing)
    data = write(tmp_path / "in.csv", ROWS[1:])
    with pytest.raises(DataError, match=r"^row 4: a control token"):
        api.answer_file(routed, tmp_path / "out.csv", config=PredictConfig(data=str(data), task="one"))
    data = write(tmp_path / "in.csv", ROWS)
    skipping = PredictConfig(data=str(data), task="one", skip_bad=True)
    result = api.answer_file(routed, tmp_path / "out.csv", config=skipping)
    assert (result.rows, result.answered) == (6, 4)
    found = read(tmp_path / "out.csv")
    assert [row["problem"] for row in found] == ["a control token", "", "", "", "a control token", ""]
    assert [bool(row["predicted_label"]) for row in found] == [False, True, True, True, False, True]


# --------------------------------------------------------------------------------------------------- the command line


def test_a_pipe_gets_the_rows_that_a_file_would(
    tmp_path: Path, routed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "in.csv", ROWS)
    words = ["-b", str(routed), "predict", "--data", str(data), "--composition", "routed", "-q"]
    assert main([*words, "--output", str(tmp_path / "out.tsv")]) == 0
    assert "wrote 6 rows to" in capsys.readouterr().out
    assert main(words) == 0
    piped = capsys.readouterr().out
    assert piped == (tmp_path / "out.tsv").read_text(encoding="utf-8")
    assert main([*words, "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line.values())[1] for line in lines] == TEXTS
    assert main([*words, "--format", "csv"]) == 0
    assert [row["text"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == TEXTS


def test_the_options_of_files_are_refused_where_they_mean_nothing(
    tmp_path: Path, routed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--format", "parquet"], ["--overwrite"], ["--format", "csv", "--json"]):
        assert main(["-b", str(routed), "predict", "a text", "--task", "one", *words]) == 2
    capsys.readouterr()
    words = ["-b", str(routed), "predict", "--data", str(write(tmp_path / "in.csv", ROWS)), "--task", "one"]
    target = tmp_path / "out.csv"
    assert main([*words, "x", "--output", str(target)]) == 2, "a text of no row"
    capsys.readouterr()
    assert main([*words, "--output", str(target), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["path"], document["rows"], document["answered"]) == (str(target), len(ROWS), len(ROWS))
    assert len(read(target)) == len(ROWS)
    assert main([*words, "--output", str(target)]) == 4


@pytest.mark.parametrize("given", ["foo=1", "delimiter=;", "max_new_tokens=3"])
def test_texts_without_a_file_have_no_settings_of_one(
    tmp_path: Path, routed: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PredictConfig(composition="routed", set=(given,))
    with pytest.raises(ConfigError, match="no chosen method has a setting"):
        api.predict(routed, ["a b c"], config)
    with pytest.raises(ConfigError, match="no chosen method has a setting"):
        api.answer_file(routed, tmp_path / "out.csv", ["a b c"], config)
    assert not (tmp_path / "out.csv").exists()
    assert main(["predict", "a b c", "--composition", "routed", "--set", given, "--bank", str(routed)]) == 2
    out, error = capsys.readouterr()
    assert (out, "no chosen method has a setting" in error) == ("", True)
