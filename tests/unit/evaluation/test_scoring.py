"""From what was said to one score with its interval: numbers written by hand, and the interval by leaving rows out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorabank.core.shelves import SCORINGS
from lorabank.core.task_kinds import HEAD
from lorabank.evaluation.scoring import Said, measured, score_rows


def test_what_each_scoring_says_of_itself() -> None:
    facts = {name: (entry.metric, entry.labelled, entry.generates, entry.measures) for name, entry in SCORINGS.items()}
    assert facts == {
        "likelihood": ("accuracy", True, False, False),
        "generation": ("exact_match", False, True, False),
        "perplexity": ("inverse_perplexity", False, False, True),
    }
    assert [measured(scoring) for scoring in (HEAD, *facts)] == [False, False, False, True]


def test_accuracy_wants_the_very_label_and_has_wilson_s_interval() -> None:
    gold = ["yes"] * 6 + ["no"] * 4
    said = ["yes"] * 5 + ["Yes"] + ["no", "no", "yes", "no."]
    score = score_rows("accuracy", Said(tuple(said)), gold)
    assert score.value == 0.7
    assert score.detail == {"correct": 7}
    assert (score.low, score.high) == pytest.approx((0.3968, 0.8922), abs=5e-5)  # Wilson for 7 of 10


def test_exact_match_forgives_case_and_punctuation() -> None:
    said = ("Paris.", " the  seine", "Rome", "e-mail")
    score = score_rows("exact_match", Said(said), ["paris", "The Seine!", "Berlin", "email"])
    assert score.value == 0.75
    assert score.detail == {"correct": 3}
    assert (score.low, score.high) == pytest.approx((0.3006, 0.9544), abs=5e-5)  # Wilson for 3 of 4


def test_nothing_right_is_a_zero_with_room_above() -> None:
    score = score_rows("accuracy", Said(("a",) * 10), ["b"] * 10)
    assert score.value == 0
    assert (score.low, score.high) == pytest.approx((0, 0.2775), abs=5e-5)


def test_a_graded_metric_has_the_normal_interval() -> None:
    said = ("a b", "a b", "x", "a b c d")
    gold = ["a b", "a c", "y", "a b"]  # 1, 1/2, 0, 2/3: mean 13/24, standard deviation 5/12
    score = score_rows("token_f1", Said(said), gold)
    assert score.value == pytest.approx(13 / 24)
    half = 1.959964 * (5 / 12) / 2
    assert (score.low, score.high) == pytest.approx((13 / 24 - half, 13 / 24 + half), abs=1e-6)
    assert score.detail == {}


def test_a_graded_interval_stays_within_0_and_1() -> None:
    score = score_rows("token_f1", Said(("a", "a b")), ["a", "a c"])
    assert (score.value, score.high) == (0.75, 1.0)
    assert score.low == pytest.approx(0.75 - 1.959964 * 0.25, abs=1e-6)


def test_rouge_l() -> None:
    # the longest common subsequence "police kill gunman" has 3 of 4 words on both sides
    score = score_rows("rouge_l", Said(("police kill the gunman",)), ["police killed a gunman"])
    assert score.value == pytest.approx(0.75)


def test_one_graded_row_says_nothing_about_others() -> None:
    score = score_rows("token_f1", Said(("a b",)), ["a c"])
    assert (score.value, score.low, score.high) == (0.5, 0.0, 1.0)


def likelihoods(values: list[float], tokens: list[int]) -> Said:
    return Said((), (), np.array(values), np.array(tokens))


def test_inverse_perplexity_by_hand() -> None:
    score = score_rows("inverse_perplexity", likelihoods([-2.0, -6.0, -1.0], [2, 3, 1]), ["x"] * 3)
    assert score.value == pytest.approx(math.exp(-1.5))  # 9 nats over 6 tokens
    assert score.detail == {"perplexity": pytest.approx(4.481689), "tokens": 6}
    # residuals 1, -1.5, 0.5 over a mean of 2 tokens: standard error sqrt(0.4375 / 3)
    assert (score.low, score.high) == pytest.approx((0.105560, 0.471646), abs=2e-6)


def test_the_interval_of_perplexity_is_the_jackknife_s() -> None:
    chance = np.random.default_rng(0)
    tokens = chance.integers(5, 60, 400)
    values = -tokens * chance.gamma(4.0, 0.5, 400)
    score = score_rows("inverse_perplexity", likelihoods(values.tolist(), tokens.tolist()), ["x"] * 400)
    without = (values.sum() - values) / (tokens.sum() - tokens)
    error = math.sqrt(399 / 400 * ((without - without.mean()) ** 2).sum())
    mean = math.log(score.value)
    assert mean == pytest.approx(values.sum() / tokens.sum())
    assert mean - math.log(score.low) == pytest.approx(1.96 * error, rel=0.02)
    assert math.log(score.high) - mean == pytest.approx(1.96 * error, rel=0.02)


def test_rows_that_did_not_fit_have_no_tokens_and_no_say() -> None:
    some = score_rows("inverse_perplexity", likelihoods([-2.0, 0.0, -4.0], [2, 0, 2]), ["x"] * 3)
    assert some.value == pytest.approx(math.exp(-1.5))
    assert some.detail["tokens"] == 4


def test_one_text_says_nothing_about_the_perplexity_of_others() -> None:
    score = score_rows("inverse_perplexity", likelihoods([-3.0], [2]), ["x"])
    assert (score.value, score.low, score.high) == (pytest.approx(math.exp(-1.5)), 0.0, 1.0)


def test_as_many_answers_as_rows() -> None:
    with pytest.raises(ValueError, match="longer"):
        score_rows("accuracy", Said(("a",)), ["a", "b"])
