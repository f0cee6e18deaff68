"""What is told of a task's rows, and which kinds of data are refused in their own words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.data.loading import TaskData, load_task_data


def load(folder: Path, rows: list[dict[str, Any]], task_type: str = "SEQ_CLS", **settings: Any) -> TaskData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task_data(TrainConfig(data=str(path), **settings), labelled=task_type == "SEQ_CLS")


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


def test_the_labels_are_counted_in_both_splits(tmp_path: Path) -> None:
    data = load(tmp_path, labelled(*["rare"] * 20, *["common"] * 60))
    assert data.label_counts == {
        "common": {"train": data.train.labels.count("common"), "eval": data.eval.labels.count("common")},
        "rare": {"train": data.train.labels.count("rare"), "eval": data.eval.labels.count("rare")},
    }
    assert list(data.label_counts) == ["common", "rare"]
    assert sum(map(Counter, data.label_counts.values()), Counter()) == {
        "train": len(data.train),
        "eval": len(data.eval),
    }
    assert data.warnings == ()


def test_a_label_without_evaluation_rows_is_told(tmp_path: Path) -> None:
    data = load(tmp_path, labelled(*["a", "b"] * 30, "legal"))
    assert "no evaluation row has the label 'legal', so it is trained but not measured" in data.warnings
    (tmp_path / "eval.jsonl").write_text('{"text": "new", "label": "a"}\n')
    data = load(tmp_path, labelled(*["a", "b", "c"] * 20), eval_data=str(tmp_path / "eval.jsonl"))
    assert data.warnings[0].startswith("no evaluation row has the labels 'b', 'c', so they are trained but")


def test_texts_with_several_labels_are_named_with_their_lines(tmp_path: Path) -> None:
    rows = [*labelled(*["a", "b"] * 30), {"text": "text 0", "label": "b"}, {"text": "text 3", "label": "a"}]
    data = load(tmp_path, rows)
    (told,) = data.warnings
    assert told == (
        "2 texts are repeated with different labels: 'text 0' is 'a' in line 1, 'b' in line 61; "
        "'text 3' is 'b' in line 4, 'a' in line 62"
    )


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    rows = labelled(*["a", "b"] * 30)
    assert load(tmp_path, [*rows, rows[0], rows[0], rows[7]]).warnings == ("3 rows repeat another one",)


@pytest.mark.parametrize(("common", "told"), [(250, False), (251, True), (400, True)])
def test_labels_of_very_different_frequency_are_told(tmp_path: Path, common: int, told: bool) -> None:
    """More than ten times as many, in the training rows."""
    (tmp_path / "eval.jsonl").write_text(
        "".join(json.dumps({"text": f"e{i}", "label": "ab"[i % 2]}) + "\n" for i in range(4))
    )
    data = load(tmp_path, labelled(*["a"] * 25, *["b"] * common), eval_data=str(tmp_path / "eval.jsonl"))
    assert any("unbalanced" in line for line in data.warnings) == told


@pytest.mark.parametrize(("rare", "told"), [(9, True), (10, False)])
def test_labels_of_few_rows_are_told(tmp_path: Path, rare: int, told: bool) -> None:
    (tmp_path / "eval.jsonl").write_text(
        "".join(json.dumps({"text": f"e{i}", "label": "ab"[i % 2]}) + "\n" for i in range(4))
    )
    data = load(tmp_path, labelled(*["a"] * rare, *["b"] * 40), eval_data=str(tmp_path / "eval.jsonl"))
    assert (f"fewer than 10 training rows are 'a' ({rare})" in data.warnings) == told


def test_completions_that_differ_are_no_conflict(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i // 2}", "completion": f"c{i}"} for i in range(20)]
    data = load(tmp_path, [*rows, rows[0]], "CAUSAL_LM")
    assert (data.label_counts, data.warnings) == ({}, ("1 row repeats another one",))


# --------------------------------------------------------------------------------------------------- not supported yet

UNSUPPORTED: list[tuple[str, list[dict[str, Any]]]] = [
    ("multi-label", labelled(*[["a", "b"], ["b"]] * 6)),
    ("multi-label", labelled(*["sport|news", "news", "news|politics", "politics|sport"] * 4)),
    ("multi-label", labelled(*["sport, news", "news, politics", "politics, sport, news", "sport, politics"] * 4)),
    ("regression", labelled(*[0.5, 1.25, 3.75] * 4)),
    ("regression", labelled(*[f"{0.37 + i / 7:.4f}" for i in range(20)])),
    ("token labels", [{"tokens": ["A", "b"], "ner_tags": [0, 1]}] * 4),
    ("token labels", [{"id": 1, "tokens": ["A", "b"], "POS_tags": [0, 1]}] * 4),
    ("DPO", [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 4),
    ("DPO", [{"chosen": [{"role": "user", "content": "x"}], "rejected": []}] * 4),
]


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM"])
@pytest.mark.parametrize(("kind", "rows"), UNSUPPORTED)
def test_other_kinds_of_data_are_refused_in_their_words(
    tmp_path: Path, kind: str, rows: list[dict[str, Any]], task_type: str
) -> None:
    with pytest.raises(DataError, match=rf"{kind}.*not supported yet") as caught:
        load(tmp_path, rows, task_type)
    assert caught.value.hint
    assert caught.value.exit_code == 6


def test_wanted_and_unwanted_answers_are_preferences(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i % 2 == 0} for i in range(8)]
    with pytest.raises(DataError, match="KTO"):
        load(tmp_path, rows, "CAUSAL_LM")
    other = [{**row, "label": "a topic"} for row in rows]
    assert load(tmp_path, other, "CAUSAL_LM").form == "prompt-completion"


@pytest.mark.parametrize("cells", [[["a", "b"], ["b"]], [[1, 2], [2]]])
def test_a_column_of_lists_in_parquet_is_called_what_it_is(tmp_path: Path, cells: list[Any]) -> None:
    pq.write_table(pa.table({"text": ["x", "y"], "label": cells}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"multi-label.*not supported yet"):
        load_task_data(TrainConfig(data=str(tmp_path / "x.parquet")))


@pytest.mark.parametrize(
    "labels",
    [
        ["Paris, France", "Lyon, France", "Berlin, Germany", "Bonn, Germany"],  # one label with a comma
        ["a|x", "a|y", "a|z", "b|x", "b|y", "b|z", "c|x", "c|y", "c|z"],  # two parts that have their places
        ["1.0", "1.5", "2.0", "2.5"],  # a scale
        ["3", "1", "2"],
        ["R&B; soul", "rock", "jazz", "folk"],
        ["0.1.2", "0.1.3", "1.0.0"],
    ],
)
def test_one_label_each_is_learnt_whatever_it_is_called(tmp_path: Path, labels: list[str]) -> None:
    assert set(load(tmp_path, labelled(*labels * 5)).labels) == set(labels)
