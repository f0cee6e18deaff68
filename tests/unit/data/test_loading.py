"""Files, labels, the two splits and samples."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError, NotFoundError
from lorabank.core.shelves import FORMATS
from lorabank.data.loading import load_task_data, read_rows
from lorabank.data.rows import Rows, sample_rows
from lorabank.data.splits import split_rows


def write(path: Path, *cells: tuple[str, str]) -> str:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in cells), encoding="utf-8")
    return str(path)


def make(*cells: tuple[str, str]) -> Rows:
    return Rows(
        texts=tuple(text for text, _ in cells),
        labels=tuple(label for _, label in cells),
        source="data.csv",
        columns=("text", "label"),
        lines=tuple(range(2, 2 + len(cells))),
    )


MANY = [(f"text {i}", "pos" if i % 4 else "neg") for i in range(100)]  # 75 pos, 25 neg

# ------------------------------------------------------------------------------------------------------------ files


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no such file: .*nowhere\.csv"):
        read_rows(tmp_path / "nowhere.csv", text_column="text", label_column=None)


def test_a_missing_file_names_the_data_file_that_was_meant(tmp_path: Path) -> None:
    for name in ("reviews.csv", "reviews.bak", "mail.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(NotFoundError, match=r"review\.csv'\. Did you mean 'reviews\.csv'\?$"):
        read_rows(tmp_path / "review.csv", text_column="text", label_column=None)
    with pytest.raises(NotFoundError, match=r"no such file: '.*/else\.csv'$"):
        read_rows(tmp_path / "else.csv", text_column="text", label_column=None)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_and_a_folder_are_bad_data_in_every_format(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"empty{suffix}").touch()
    (tmp_path / f"folder{suffix}").mkdir()
    for name, problem in (("empty", "is empty"), ("folder", "is a folder")):
        with pytest.raises(DataError, match=problem):
            read_rows(tmp_path / f"{name}{suffix}", text_column="text", label_column=None)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="not a regular file"):
        read_rows(tmp_path / "pipe.csv", text_column="text", label_column=None)


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "data.ods").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.ods.*'\.ods'") as caught:
        read_rows(tmp_path / "data.ods", text_column="text", label_column=None)
    assert all(suffix in (caught.value.hint or "") for suffix in FORMATS)


def test_texts_alone_need_no_label_column(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("id,text\n1,a\n2,b\n")
    rows = read_rows(tmp_path / "data.csv", text_column="text", label_column=None)
    assert (rows.texts, rows.labels, rows.columns) == (("a", "b"), (), ("text",))


def test_the_digest_is_over_the_rows_in_canonical_form(tmp_path: Path) -> None:
    rows = '{"label": 1, "text": "é", "other": 0}\n{"text": "b", "label": "x"}\n'
    (tmp_path / "data.jsonl").write_text(rows, encoding="utf-8")
    by_hand = hashlib.sha256('{"label":"1","text":"é"}\n{"label":"x","text":"b"}\n'.encode()).hexdigest()
    from_json = read_rows(tmp_path / "data.jsonl", text_column="text", label_column="label")
    assert from_json.sha256 == by_hand
    file = write(tmp_path / "same.csv", ("é", "1"), ("b", "x"))
    assert read_rows(file, text_column="text", label_column="label").sha256 == by_hand


# ----------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["spam", "ham"], ("ham", "spam")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
    ],
)
def test_labels_are_in_alphabetical_or_numerical_order(tmp_path: Path, labels: list[str], order: tuple[str]) -> None:
    file = write(tmp_path / "d.csv", *((f"{label} {i}", label) for label in labels for i in range(4)))
    assert load_task_data(TrainConfig(data=file)).labels == order


def test_one_label_is_not_a_task(tmp_path: Path) -> None:
    file = write(tmp_path / "d.csv", ("a", "x"), ("b", "x"), ("c", "x"))
    with pytest.raises(DataError, match="every row has the label 'x'"):
        load_task_data(TrainConfig(data=file))


def test_a_label_unseen_in_training_names_its_line(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", ("a", "ham"), ("b", "spam"))
    test = write(tmp_path / "test.csv", ("c", "ham"), ("d", "spa"))
    with pytest.raises(DataError) as caught:
        load_task_data(TrainConfig(data=train, eval_data=test))
    assert "test.csv', line 3, column 'label': the label 'spa' is not among" in caught.value.message
    assert "Did you mean 'spam'?" in caught.value.message


# ---------------------------------------------------------------------------------------------------------- the split


def test_the_evaluation_file_is_taken_as_it_is(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", ("a", "x"), ("a", "x"), ("b", "y"))
    test = write(tmp_path / "test.csv", ("c", "x"), ("c", "x"))
    data = load_task_data(TrainConfig(data=train, eval_data=test))
    assert (data.train.texts, data.eval.texts, data.dropped) == (("a", "a", "b"), ("c", "c"), 0)


def test_an_evaluation_file_that_repeats_training_texts_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", ("a", "x"), ("b", "y"), ("c", "y"))
    test = write(tmp_path / "test.csv", ("d", "x"), ("b", "x"), ("c", "y"))
    with pytest.raises(DataError) as caught:
        load_task_data(TrainConfig(data=train, eval_data=test))
    message = caught.value.message
    assert message.startswith("2 evaluation rows repeat a training text")
    assert "test.csv' line 3" in message
    assert "train.csv' line 3" in message


def test_the_split_keeps_the_shares_of_the_labels() -> None:
    train, held, dropped = split_rows(make(*MANY), 0.2, seed=0)
    assert Counter(train.labels) == {"pos": 60, "neg": 20}
    assert Counter(held.labels) == {"pos": 15, "neg": 5}
    assert dropped == 0
    assert list(train.lines) == sorted(train.lines)
    assert sorted(train.lines + held.lines) == list(range(2, 102))


def test_the_split_depends_on_the_seed_but_not_on_the_order_of_the_rows() -> None:
    first = set(split_rows(make(*MANY), 0.2, seed=0)[1].texts)
    again = set(split_rows(make(*reversed(MANY)), 0.2, seed=0)[1].texts)
    other = set(split_rows(make(*MANY), 0.2, seed=1)[1].texts)
    assert first == again
    assert first != other


def test_four_rows_are_enough(tmp_path: Path) -> None:
    file = write(tmp_path / "d.csv", ("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"))
    data = load_task_data(TrainConfig(data=file))
    assert sorted(data.train.labels) == ["x", "y"]
    assert sorted(data.eval.labels) == ["x", "y"]


def test_a_label_with_one_text_stays_in_training() -> None:
    train, held, _ = split_rows(make(("a", "x"), ("b", "x"), ("c", "y")), 0.5, seed=0)
    assert "y" in train.labels
    assert held.labels == ("x",)


def test_no_text_to_spare_asks_for_an_evaluation_file() -> None:
    with pytest.raises(DataError, match="too few rows") as caught:
        split_rows(make(("a", "x"), ("a", "x"), ("b", "y")), 0.5, seed=0)
    assert "--eval-data" in (caught.value.hint or "")


def test_repetitions_count_once_in_evaluation_and_are_reported() -> None:
    rows = make(*[(f"{label}{i}", label) for label in "xy" for i in range(2)] * 3)
    train, held, dropped = split_rows(rows, 0.5, seed=0)
    assert len(train) == 6, "training rows keep their repetitions"
    assert len(held) == len(set(held.texts)) == 2
    assert held.lines == tuple(line for line in held.lines if line < 6), "the first of equal rows is kept"
    assert dropped == 4


@given(
    cells=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), min_size=1, max_size=40),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_text_stands_on_both_sides_and_every_label_is_trained(
    cells: list[tuple[str, str]], fraction: float, seed: int
) -> None:
    rows = make(*cells)
    try:
        train, held, dropped = split_rows(rows, fraction, seed)
    except DataError:
        reject()  # too few texts; that this is not every example is for hypothesis to see
    assert not set(train.texts) & set(held.texts)
    assert set(train.labels) == set(rows.labels)
    assert len(held) > 0
    assert len(train) + len(held) + dropped == len(rows)


# ---------------------------------------------------------------------------------------------------------- samples


def test_a_sample_keeps_the_shares_and_the_order() -> None:
    sample = sample_rows(make(*MANY), 10, seed=3)
    # 10 of 100: the exact shares are 7.5 and 2.5; equal remainders go by name.
    assert Counter(sample.labels) == {"neg": 3, "pos": 7}
    assert list(sample.lines) == sorted(sample.lines)
    assert sample_rows(make(*MANY), 10, seed=3).sha256 == sample.sha256
    assert sample_rows(make(*MANY), 10, seed=4).sha256 != sample.sha256


@pytest.mark.parametrize(("n", "size"), [(0, 0), (1, 1), (99, 99), (100, 100), (500, 100)])
def test_a_sample_has_the_size_asked_for(n: int, size: int) -> None:
    assert len(sample_rows(make(*MANY), n, seed=0)) == size


def test_a_sample_of_texts_alone() -> None:
    rows = Rows(texts=("a", "b", "c"), labels=(), source="", columns=("text",), lines=(1, 2, 3))
    assert len(sample_rows(rows, 2, seed=0)) == 2
