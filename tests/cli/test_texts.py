"""Free text on the terminal: figures, samples, and nothing that steers it."""

from __future__ import annotations

from lorabank_cli.render.texts import answered, other_metrics, samples

from lorabank.evaluation.text_samples import Sample, TextScores

METRICS = {"exact_match": 0.0, "token_f1": 0.25, "rouge_l": 0.5}
SCORES = TextScores(METRICS, (Sample(1, "a\nb", "\x1b[2J", ""), Sample(4, "c", "d", "e")))


def test_what_stands_beside_the_score() -> None:
    assert other_metrics(SCORES, "token_f1") == [("exact match", 0.0), ("rouge l", 0.5)]
    assert other_metrics(None, "accuracy") == []


def test_a_sample_has_three_lines_and_escapes() -> None:
    assert samples(SCORES) == (
        "evaluation row 1\n  asked   a\n          b\n  wanted  \\x1b[2J\n  got\n"
        "evaluation row 4\n  asked   c\n  wanted  d\n  got     e"
    )


def test_the_samples_of_many_tasks_are_left_to_each() -> None:
    table, *rest = answered(dict.fromkeys(("one", "two"), SCORES))
    assert "one             0.0000    0.2500   0.5000" in table
    assert len(rest) == 2
    table, hint = answered(dict.fromkeys(("one", "two", "three", "four"), SCORES))
    assert table.count("0.2500") == 4
    assert hint == "\n--task NAME shows samples of a task's answers"
    assert answered({}) == []
