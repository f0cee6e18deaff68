"""Bad rows: all of a file are named at once, and ``--skip-bad`` leaves them out, counted and listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.data.loading import load_task_data

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


def write(folder: Path, suffix: str, labels: list[str | None]) -> str:
    """Rows of which those without a label are bad."""
    path = folder / f"data{suffix}"
    if suffix in (".csv", ".tsv"):
        between = "," if suffix == ".csv" else "\t"
        lines = [f"text{between}label", *(f"text {i}{between}{label or ''}" for i, label in enumerate(labels))]
        path.write_text("\n".join(lines) + "\n")
        return str(path)
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    lines = [json.dumps(row) for row in rows]
    path.write_text("[" + ",\n".join(lines) + "]" if suffix == ".json" else "\n".join(lines) + "\n")
    return str(path)


GOOD: list[str | None] = ["a", "b"] * 30


def with_bad(count: int) -> list[str | None]:
    labels = [*GOOD]
    for index in range(count):
        labels[3 + index] = None
    return labels


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [1, 2, 10, 11, 25])
def test_all_are_named_up_to_a_number(tmp_path: Path, suffix: str, count: int) -> None:
    with pytest.raises(DataError) as caught:
        load_task_data(TrainConfig(data=write(tmp_path, suffix, with_bad(count))))
    message = caught.value.message
    unit, first = ("entry", 4) if suffix == ".json" else ("line", 4 if suffix == ".jsonl" else 5)
    for number in range(first, first + min(count, 10)):
        assert f"{unit} {number}, column 'label'" in message
    assert f"{unit} {first + 10}," not in message
    assert (f"and {count - 10} more" in message) == (count > 10)
    assert (f": {count} bad rows: " in message) == (count > 1)
    assert "--skip-bad" in (caught.value.hint or "")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_skipped_rows_are_counted_and_the_first_twenty_listed(tmp_path: Path, suffix: str) -> None:
    data = load_task_data(TrainConfig(data=write(tmp_path, suffix, with_bad(25)), skip_bad=True))
    assert len(data.train) + len(data.eval) == len(GOOD) - 25
    (left,) = data.left_out
    assert (left.rows, len(left.first)) == (25, 20)
    assert "column 'label': " in left.first[0]
    assert "25 bad rows are left out" in str(left)
    assert "and 5 more" in str(left)
    plain = load_task_data(TrainConfig(data=write(tmp_path, suffix, GOOD)))
    lost = {*plain.train.texts, *plain.eval.texts} - {*data.train.texts, *data.eval.texts}
    assert lost == {f"text {i}" for i in range(3, 28)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_more_than_half_is_refused_even_then(tmp_path: Path, suffix: str) -> None:
    half: list[str | None] = ["a", "b"] * 5
    good = write(tmp_path, suffix, [*half, *[None] * 10])
    assert load_task_data(TrainConfig(data=good, skip_bad=True)).left_out[0].rows == 10
    with pytest.raises(DataError, match="11 of 21 rows are bad, more than half"):
        load_task_data(TrainConfig(data=write(tmp_path, suffix, [*half, *[None] * 11]), skip_bad=True))


def test_every_kind_of_bad_row_is_left_out(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(20)]
    bad = [
        '{"text": "a", "label": NaN}', '{"text": "a", "text": "b", "label": 1}', "[1]", "{broken", '{"text": "a"}',
        '{"text": "", "label": 1}', '{"text": 5, "label": 1}', '{"text": "a\\u0000", "label": 1}',
        '{"text": "a", "label": 0.5}', '{"text": "' + "x" * 2**20 + '", "label": 1}',
    ]  # fmt: skip
    lines = [line for pair in zip(good, bad, strict=False) for line in pair] + good[len(bad) :]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    data = load_task_data(TrainConfig(data=str(tmp_path / "x.jsonl"), skip_bad=True))
    assert data.left_out[0].rows == len(bad)
    assert [place.split(":")[0].split(",")[0] for place in data.left_out[0].first] == [
        f"line {2 * i + 2}" for i in range(len(bad))
    ]
    assert {*data.train.texts, *data.eval.texts} == {f"text {i}" for i in range(20)}


def test_a_list_of_json_goes_on_behind_what_is_not_strict(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(10)]
    bad = ['{"text": "a", "label": NaN}', "[1, [2]]", '{"text": "a", "text": "}{", "label": 1}', "null"]
    (tmp_path / "x.json").write_text("[" + ",\n".join([*good[:5], *bad, *good[5:]]) + "]")
    data = load_task_data(TrainConfig(data=str(tmp_path / "x.json"), skip_bad=True))
    assert data.left_out[0].rows == len(bad)
    assert len(data.train) + len(data.eval) == 10


def test_an_open_quote_is_never_left_out_as_a_row(tmp_path: Path) -> None:
    """It would take the rows behind it with it."""
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "x.csv").write_text(f'text,label\n{rows}"open,a\n{rows}')
    with pytest.raises(DataError, match="line 22: not CSV: a quote is opened and never closed"):
        load_task_data(TrainConfig(data=str(tmp_path / "x.csv"), skip_bad=True))


def test_bad_rows_of_both_files_are_listed(tmp_path: Path) -> None:
    train = write(tmp_path, ".csv", with_bad(2))
    (tmp_path / "eval.csv").write_text("text,label\nnew,a\n,b\nother,b\n")
    data = load_task_data(TrainConfig(data=train, eval_data=str(tmp_path / "eval.csv"), skip_bad=True))
    assert [left.rows for left in data.left_out] == [2, 1]
    assert [Path(left.source).name for left in data.left_out] == ["data.csv", "eval.csv"]


def test_labels_that_training_lacks_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text("text,label\nnew,c\nother,b\nthird,d\n")
    with pytest.raises(DataError, match=r"2 bad rows: line 2.*'c' is not among.*; line 4.*'d' is not among"):
        load_task_data(TrainConfig(data=write(tmp_path, ".csv", GOOD), eval_data=str(tmp_path / "eval.csv")))
