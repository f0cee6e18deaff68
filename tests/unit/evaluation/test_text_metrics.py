from __future__ import annotations

import sys

import pytest

from lorabank.core.errors import MissingExtraError
from lorabank.evaluation import text_metrics
from lorabank.evaluation.text_metrics import TEXT_METRICS, exact_match, normalise, rouge_l, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Very\tPositive.\n", "very positive"),
        ("The answer: a cat!", "the answer a cat"),  # articles stay
        ("e-mail, U.S.", "email us"),  # punctuation is dropped, not replaced by a blank
        ("Ça va – BIEN “oui”", "ça va – bien “oui”"),  # only ASCII punctuation
        ("...", ""),
    ],
)
def test_normalisation_of_the_papers(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        ("Positive.", "positive", 1.0),
        ("very  positive", "Very Positive", 1.0),
        ("the positive", "positive", 0.0),
        ("positive negative", "positive", 0.0),
        ("", "positive", 0.0),
        ("", "?", 0.0),
        ("?", " ? ", 1.0),
        ("!", "?", 0.0),
        ("", "", 1.0),
    ],
)
def test_exact_match(said: str, gold: str, expected: float) -> None:
    assert exact_match(said, gold) == expected


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("cat", "the cat sat", 2 * (1 / 1) * (1 / 3) / (1 / 1 + 1 / 3)),
        ("a b c d", "b d e", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ("no no no", "no", 2 * (1 / 3) * (1 / 1) / (1 / 3 + 1 / 1)),  # a word counts as often as it is in both
        ("sat cat", "cat, sat!", 1.0),  # the order does not count
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("...", "", 1.0),
    ],
)
def test_token_f1(said: str, gold: str, expected: float) -> None:
    assert token_f1(said, gold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        # longest common subsequence "the cat on the mat", 5 of 6 words said and of 6 that are right
        ("The cat lay on the mat", "the cat sat on the mat.", 5 / 6),
        # "b d": 2 of 4 said, 2 of 3 right
        ("a b c d", "b d e", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ("d c b a", "a b c d", 1 / 4),  # here the order counts
        ("running dogs", "ran dog", 0.5),  # stemmed: "dogs" is "dog", but "running" is "run"
        ("", "cat", 0.0),
    ],
)
def test_rouge_l_against_hand_computed_subsequences(said: str, gold: str, expected: float) -> None:
    pytest.importorskip("rouge_score")
    assert rouge_l(said, gold) == pytest.approx(expected, abs=1e-12)


def test_rouge_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    text_metrics._rouge_scorer.cache_clear()
    with pytest.raises(MissingExtraError, match="rouge-score") as caught:
        rouge_l("a", "a")
    assert caught.value.hint == 'pip install "rouge-score>=0.1.2"'
    assert "\n" not in caught.value.message


def test_the_table_names_every_metric() -> None:
    assert {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l} == TEXT_METRICS
