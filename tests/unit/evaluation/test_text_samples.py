from __future__ import annotations

import json
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabank.core.records import EvaluationRecord
from lorabank.core.shelves import TEXT_METRICS
from lorabank.evaluation.text_metrics import usual_metric
from lorabank.evaluation.text_samples import KEY, MOST_CHARACTERS, metric_of, text_detail, text_scores


def cell(**detail: object) -> EvaluationRecord:
    return EvaluationRecord("k", "as-trained", 1, "t", "token_f1", 0.5, 2, 0.0, 1.0, "given", {}, dict(detail))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["yes", "no"], "exact_match"),
        (["It is a cold day."], "exact_match"),  # five words
        (["It is a very cold day."], "token_f1"),
        (["yes", "It is a very cold day indeed.", "no"], "exact_match"),  # most are short
        (["yes", "It is a very cold day."], "exact_match"),  # half of them
        (["yes", "It is a very cold day.", "It rains all the time, and it is cold."], "token_f1"),
        (["痛风要治疗"], "exact_match"),
        (["痛风用药治疗。"], "token_f1"),  # six characters, each a word
        (["..."], "exact_match"),
    ],
)
def test_short_answers_are_right_or_wrong_and_long_ones_are_compared(answers: list[str], expected: str) -> None:
    assert usual_metric(answers) == expected


def test_what_was_recorded_decides_and_a_record_of_before_is_of_exact_matches() -> None:
    assert metric_of("generation", {"text_metric": "token_f1"}) == "token_f1"
    assert metric_of("generation", {}) == "exact_match"
    assert metric_of("likelihood", {"text_metric": "token_f1"}) == "accuracy"
    assert metric_of("perplexity", {}) == "inverse_perplexity"


@settings(deadline=None)  # the first call imports rouge-score
@given(st.lists(st.tuples(st.text(max_size=900), st.text(), st.text(max_size=900)), min_size=1, max_size=23))
def test_means_over_all_rows_and_five_samples_of_bounded_length(rows: list[tuple[str, str, str]]) -> None:
    asked, wanted, got = zip(*rows, strict=True)
    scores = text_scores(cell(**{KEY: json.loads(json.dumps(text_detail(asked, wanted, got)))}))
    assert scores is not None
    assert list(scores.metrics) == list(TEXT_METRICS)
    for name, metric in TEXT_METRICS.items():
        assert scores.metrics[name] == pytest.approx(fmean(metric(g, w) for g, w in zip(got, wanted, strict=True)))
    places = [sample.row for sample in scores.samples]
    assert len(places) == min(5, len(rows))
    assert places == sorted(set(places))
    assert places[0] == 1
    for sample in scores.samples:
        for told, whole in zip((sample.asked, sample.wanted, sample.got), rows[sample.row - 1], strict=True):
            assert len(told) <= MOST_CHARACTERS
            assert (
                told == whole
                if len(whole) <= MOST_CHARACTERS
                else (told[:99], told[-99:]) == (whole[:99], whole[-99:])
            )


def test_a_cell_of_before_has_none() -> None:
    assert text_scores(cell(seconds=1.0)) is None
