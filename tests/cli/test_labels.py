"""What the terminal says of the labels of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabank.core.records import EvaluationRecord
from lorabank.evaluation.confusion import LabelScores, label_detail, label_scores, with_texts
from lorabank.evaluation.metrics import wilson_interval
from lorabank.workflows.results import AddTaskResult, MatrixReport
from tests.cli.hostile import ALL, PAYLOADS, assert_harmless
from tests.cli.test_work_commands import NOTHING, _added, _gates


def scores(gold: list[str], answers: list[str], texts: list[str] | None = None) -> LabelScores:
    right = sum(map(str.__eq__, gold, answers))
    low, high = wilson_interval(right, len(gold))
    detail = {"labels": label_detail(gold, answers, [(500 + row) / 1000 for row in range(len(gold))])}
    cell = EvaluationRecord(
        "k", "as-trained", 1, "spam", "accuracy", right / len(gold), len(gold), low, high, "given", {}, detail
    )
    found = label_scores(cell, sorted(set(gold)))
    assert found is not None
    return with_texts(found, texts or [f"text {row}" for row in range(1, len(gold) + 1)])


GOLD = ["ham"] * 40 + ["spam"] * 20
GOOD = scores(GOLD, ["ham"] * 38 + ["spam"] * 20 + ["ham"] * 2)
CHANCE = scores(GOLD, ["ham"] * 60)


def task_report(found: LabelScores, **changes: Any) -> MatrixReport:
    one: dict[str, Any] = {
        "subject": "as-trained", "mode": "as-trained", "task_id": "given", "tasks": ("spam",),
        "values": [[None], [0.9]], "low": [[None], [0.8]], "high": [[None], [0.95]], "counts": [60], "scalars": {},
        "computed": 0, "cached": 1, "routing": None, "settings": {}, "state": "now", "labels": {"spam": found},
    }  # fmt: skip
    return MatrixReport(**(one | changes))


def shown_of(run: Any, api: Any, found: LabelScores, *more: str, **changes: Any) -> Any:
    api["check_gates"] = _gates
    api["evaluate"] = (task_report(found, **changes),)
    return run("eval", "--task", "spam", *more)


def test_eval_of_a_task_shows_labels_matrix_and_mistakes(run: Any, api: Any) -> None:
    assert shown_of(run, api, GOOD).out.splitlines() == [
        "task spam as trained, in its state now; the task id is given",
        "",
        "task  accuracy  95 % interval     macro-F1  rows",
        "spam    0.9000  0.8000 .. 0.9500    0.9250    60",
        "",
        "  macro-F1  0.9250 (lowest F1: spam 0.9000, ham 0.9500)",
        "",
        "label  precision  recall      F1  rows",
        "ham       0.9500  0.9500  0.9500    40",
        "spam      0.9000  0.9000  0.9000    20",
        "",
        "wanted \\ answered  ham  spam",
        "ham                 38     2",
        "spam                 2    18",
        "",
        "worst mistakes: wrong answers with the highest probability; rows of the evaluation data",
        "row  wanted  answered  probability  text",
        " 60  spam    ham            0.5590  text 60",
        " 59  spam    ham            0.5580  text 59",
        " 40  ham     spam           0.5390  text 40",
        " 39  ham     spam           0.5380  text 39",
    ]


def test_json_has_everything(run: Any, api: Any) -> None:
    (report,) = shown_of(run, api, GOOD, "--json").document["reports"]
    found = report["labels"]["spam"]
    assert found["confusion"] == [["ham", "ham", 38], ["ham", "spam", 2], ["spam", "ham", 2], ["spam", "spam", 18]]
    assert found["mistakes"][0] == {
        "row": 60, "wanted": "spam", "answered": "ham", "probability": 0.559, "text": "text 60",
    }  # fmt: skip
    assert (found["chance"], found["against_chance"]) == (40 / 60, "above")


def test_a_score_at_chance_is_called_that_wherever_it_is_shown(run: Any, api: Any, records: Any) -> None:
    note = "at chance: always answering the most frequent label gives 0.6667"
    assert note in shown_of(run, api, CHANCE).out
    assert f"\nspam: {note}\n" in shown_of(run, api, CHANCE, state=None).out
    assert "chance" not in shown_of(run, api, GOOD, state=None).out
    for found, told in ((CHANCE, True), (GOOD, False)):
        added: AddTaskResult = _added(records)
        added.score["labels"] = found
        api["add_task"], api["import_adapter"], api["overview"] = added, added, NOTHING
        for words in (("add-task", "spam", "--data", "s.jsonl"), ("import", "./a", "--task", "spam", "--data", "x")):
            assert (note in run(*words).out) is told


def test_add_task_shows_a_small_matrix_and_no_large_one(run: Any, api: Any, records: Any) -> None:
    many = [f"label {k}" for k in range(12)] * 2
    api["overview"] = NOTHING
    for found, lines in ((GOOD, 3), (scores(many, many[::-1]), 0)):
        added = _added(records)
        added.score["labels"] = found
        api["add_task"] = added
        out = run("add-task", "spam", "--data", "s.jsonl").out
        assert "macro-F1" in out
        matrix = out.partition("\n\n")[2].splitlines()
        assert len(matrix) == lines


def test_many_labels_stay_readable(run: Any, api: Any) -> None:
    names = [f"intent {k:03}" for k in range(150)]
    gold = names * 4
    answers = [names[(k * 7) % 150] if k % 3 else label for k, label in enumerate(gold)]
    out = shown_of(run, api, scores(gold, answers)).out
    assert max(map(len, out.splitlines())) <= 120
    assert len(out.splitlines()) < 60
    assert "(130 labels with a higher F1 are in --json)" in out


def test_a_long_label_does_not_hide_the_matrix(run: Any, api: Any) -> None:
    gold = ["a very long label of a support queue"] * 3 + ["b"] * 3
    assert "wanted \\ answered                     a very long~  b" in shown_of(run, api, scores(gold, gold[::-1])).out


@pytest.mark.parametrize("payload", [*PAYLOADS.values(), ALL], ids=[*PAYLOADS, "all"])
def test_labels_and_texts_do_nothing(run: Any, api: Any, records: Any, payload: str) -> None:
    found = scores([payload, "b", payload], ["b", payload, "b"], [payload] * 3)
    for more in ((), ("--json",)):
        result = shown_of(run, api, found, *more)
        assert_harmless(result.out + result.err)
        assert result.code == 0
    added = _added(records)
    added.score["labels"] = found
    api["add_task"], api["overview"] = added, NOTHING
    result = run("add-task", "spam", "--data", "s.jsonl")
    assert_harmless(result.out + result.err)
    from lorabank.evaluation.plots.confusion import confusion_plot

    written = confusion_plot(found, payload).save(Path("c.svg")).read_text(encoding="utf-8")
    assert "<script" not in written
    assert_harmless(written)
