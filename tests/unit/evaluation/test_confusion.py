"""Scores of each label, confusions and mistakes: against scikit-learn's, and bounded whatever the data."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from lorabank.core.records import EvaluationRecord
from lorabank.evaluation.confusion import LabelScores, label_detail, label_scores, with_texts
from lorabank.evaluation.metrics import wilson_interval
from lorabank.evaluation.plots.confusion import confusion_plot


def scored(
    gold: list[str], answers: list[str], sure: list[float] | None = None, labels: Any = None, **changes: Any
) -> LabelScores:
    detail = json.loads(json.dumps({"labels": label_detail(gold, answers, sure)}, allow_nan=False))
    right = sum(map(str.__eq__, gold, answers))
    low, high = wilson_interval(right, len(gold))
    cell = EvaluationRecord(
        "k", "as-trained", 1, "t", "accuracy", right / len(gold), len(gold), low, high, "given", {}, detail
    )
    found = label_scores(cell._replace(**changes), labels or sorted(set(gold)))
    assert found is not None
    return found


def drawn(seed: int, labels: int, rows: int, foreign: bool) -> tuple[list[str], list[str], list[float]]:
    chance = random.Random(seed)
    names = [f"label {k}" for k in range(labels)]
    gold = names[:2] + [chance.choice(names) for _ in range(rows - 2)]
    others = names + ["of another task"] * foreign
    answers = [one if chance.random() < 0.6 else chance.choice(others) for one in gold]
    return gold, answers, [chance.random() for _ in gold]


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize(("labels", "rows"), [(2, 10), (3, 200), (12, 300), (40, 60)])
def test_the_figures_are_scikit_learn_s(labels: int, rows: int, foreign: bool) -> None:
    gold, answers, _ = drawn(labels, labels, rows, foreign)
    present = sorted(set(gold))
    found = scored(gold, answers)
    assert [one.label for one in found.labels] == present
    wanted = precision_recall_fscore_support(gold, answers, labels=present, zero_division=np.nan)
    for one, precision, recall, f1, support in zip(found.labels, *wanted, strict=True):
        assert (one.recall, one.rows) == (pytest.approx(recall), support)
        assert one.f1 == pytest.approx(0 if np.isnan(f1) else f1)
        assert one.precision == (None if np.isnan(precision) else pytest.approx(precision))
        assert one.answered == answers.count(one.label)
    assert found.macro_f1 == pytest.approx(f1_score(gold, answers, labels=present, average="macro", zero_division=0))
    names = list(found.names)
    matrix = np.zeros((len(names), len(names)), int)
    for want, got, count in found.confusion:
        matrix[names.index(want), names.index(got)] = count
    np.testing.assert_array_equal(matrix, confusion_matrix(gold, answers, labels=names))
    assert found.unlisted == 0


def test_labels_stand_in_the_task_s_order_and_a_label_that_was_not_wanted_last() -> None:
    found = scored(["2", "10", "1"], ["10", "10", "x"], labels=("1", "2", "10"))
    assert [one.label for one in found.labels] == ["1", "2", "10"]
    assert found.names == ("1", "2", "10", "x")
    assert found.confusion == (("1", "x", 1), ("2", "10", 1), ("10", "10", 1))


def test_the_worst_mistakes_are_the_surest() -> None:
    gold, answers, sure = drawn(7, 3, 200, False)
    found = scored(gold, answers, sure)
    wrong = [row for row in range(len(gold)) if gold[row] != answers[row]]
    surest = sorted(wrong, key=lambda row: sure[row], reverse=True)[:10]
    assert [one.row for one in found.mistakes] == [row + 1 for row in surest]
    assert [one.probability for one in found.mistakes] == pytest.approx([sure[row] for row in surest])
    assert [(one.wanted, one.answered) for one in found.mistakes] == [(gold[row], answers[row]) for row in surest]
    texts = [f"text {row}" * 100 for row in range(len(gold))]
    shown = with_texts(found, texts)
    for one in shown.mistakes:
        assert one.text is not None
        assert len(one.text) == 300
        assert texts[one.row - 1].startswith(one.text[:-1])


def test_an_answer_without_a_probability_comes_last_among_the_mistakes() -> None:
    found = scored(["a", "a", "b"], ["b", "b", "a"], [float("nan"), 0.2, 0.9])
    assert [(one.row, one.probability) for one in found.mistakes] == [(3, 0.9), (2, 0.2), (1, None)]
    assert [one.row for one in scored(["a", "b"], ["b", "a"]).mistakes] == [1, 2]


def test_nothing_wrong_has_no_mistakes() -> None:
    found = scored(["a", "b"], ["a", "b"])
    assert (found.macro_f1, found.mistakes, found.unlisted) == (1.0, (), 0)


def test_what_a_cell_keeps_is_bounded() -> None:
    chance = random.Random(0)
    names = [f"{k}".rjust(256, "x") for k in range(2000)]
    gold = [chance.choice(names) for _ in range(20_000)]
    answers = [chance.choice(names) + "y" * 1000 for _ in gold]
    kept = label_detail(gold, answers, [0.5] * len(gold))
    assert len(json.dumps(kept)) < 120_000
    found = scored(gold, answers)
    assert sum(rows for want, got, rows in found.confusion if want != got) + found.unlisted == 20_000
    few = label_detail(["a", "b"] * 5000, ["b", "a"] * 5000, [0.5] * 10_000)
    assert len(json.dumps(few)) < 500


@pytest.mark.parametrize(
    ("right", "rows", "where"),
    [  # 60 of 100 rows have the most frequent label; Wilson's intervals of the shares that are right
        (80, 100, "above"), (70, 100, "above"), (62, 100, "unclear"), (60, 100, "at"), (55, 100, "at"),
        (45, 100, "below"), (0, 100, "below"),
    ],
)  # fmt: skip
def test_a_score_is_compared_with_the_most_frequent_label(right: int, rows: int, where: str) -> None:
    gold = ["often"] * 60 + ["b"] * 30 + ["c"] * 10
    answers = gold[:right] + ["none"] * (rows - right)
    found = scored(gold, answers)
    assert (found.chance, found.uniform) == (0.6, pytest.approx(1 / 3))
    assert found.against_chance == where
    note = found.chance_note
    if where == "above":
        assert note is None
    else:
        words = {"unclear": "not clearly above", "at": "at", "below": "below"}[where]
        assert note == f"{words} chance: always answering the most frequent label gives 0.6000"


def test_a_cell_without_labels_or_from_before_says_nothing() -> None:
    cell = EvaluationRecord("k", "s", 1, "t", "accuracy", 0.5, 4, 0.1, 0.9, "given", {}, {"correct": 2})
    assert label_scores(cell, ("a", "b")) is None


@pytest.mark.parametrize("labels", [2, 30, 90])
def test_the_picture_names_what_it_shows(tmp_path: Path, labels: int) -> None:
    gold, answers, sure = drawn(1, labels, 600, False)
    found = scored(gold, answers, sure)
    path = confusion_plot(found, "queue <&> $x$", "accuracy 0.6").save(tmp_path / "c.svg")
    # matplotlib draws text as shapes and names it in a comment
    words = re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))
    for word in ("wanted", "answered", "share of the row"):
        assert word in words
    shown = [word for word in words if word.startswith("label ")]
    assert len(shown) == 2 * min(labels, 40)
    if labels == 2:
        counts = [str(rows) for _, _, rows in found.confusion]
        assert set(counts) <= set(words)
    assert ("40 of 90 labels: those with the most wrong rows" in words) == (labels == 90)
    assert confusion_plot(found, "t").save(tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
