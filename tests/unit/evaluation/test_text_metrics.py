from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from lorabank.core.shelves import TEXT_METRICS
from lorabank.evaluation.text_metrics import (
    exact_match,
    longest_common,
    normalise,
    rouge_l,
    token_f1,
    words,
)


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
    assert rouge_l(said, gold) == pytest.approx(expected, abs=1e-12)


ASCII = "".join(map(chr, range(32, 127)))
UNSPACED = "痛风怎么治疗すしラーメンสวัสดีລາວខ្មែរမြန်မာ"


@settings(deadline=None)  # the first call imports nltk
@given(st.text(ASCII, max_size=60), st.text(ASCII, max_size=60))
@example("Running dogs_ran, e-mail!", "the runner's dog ran by e mail")
def test_ascii_has_the_published_numbers(said: str, gold: str) -> None:
    published = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    assert rouge_l(said, gold) == published.score(target=gold, prediction=said)["rougeL"].fmeasure
    assert words(said) == normalise(said).split()


@given(st.lists(st.sampled_from("abc"), max_size=70), st.lists(st.sampled_from("abcd"), max_size=140))
def test_the_longest_common_subsequence_is_that_of_the_table(one: list[str], other: list[str]) -> None:
    row = [0] * (len(other) + 1)
    for word in one:
        before, row = row, [0]
        for place, there in enumerate(other):
            row.append(before[place] + 1 if word == there else max(row[place], before[place + 1]))
    assert longest_common(one, other) == longest_common(other, one) == row[-1]


def test_long_texts_take_no_table_of_every_pair_of_words() -> None:
    said = " ".join(f"word{i}" for i in range(4_000))
    rouge_l("a", "a")
    tracemalloc.start()
    try:
        rouge_l(said, f"{said} {said}")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 * 1024**2  # the table has 32 million entries


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("急性痛风", ["急", "性", "痛", "风"]),
        ("用抗炎药,多喝水。", ["用", "抗", "炎", "药", "多", "喝", "水"]),  # punctuation is no word
        ("每天140/90毫米", ["每", "天", "14090", "毫", "米"]),  # "/" is dropped as in every text
        ("维生素D", ["维", "生", "素", "d"]),
        ("すしとラーメン", ["す", "し", "と", "ラ", "ー", "メ", "ン"]),
        ("ที่นี่", ["ที่", "นี่"]),  # a mark belongs to its letter
        ("Ça va – BIEN “oui”", ["ça", "va", "–", "bien", "“oui”"]),  # scripts with blanks stay as published
        ("안녕 하세요", ["안녕", "하세요"]),
        ("привет, мир", ["привет", "мир"]),
    ],
)
def test_a_script_without_blanks_has_its_characters_as_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("said", "gold", "f1", "rouge"),
    [
        ("急性痛风用药", "痛风要用药", 2 * 4 / (6 + 5), 2 * 4 / (6 + 5)),
        ("药用", "用药", 1.0, 0.5),  # the order counts for ROUGE-L alone
        ("English nonsense.", "痛风要用药", 0.0, 0.0),
        ("痛风用 aspirin.", "痛风用aspirin", 1.0, 1.0),
        ("большой дом", "дом", 2 / 3, 2 / 3),
        ("Müller läuft", "müller läuft!", 1.0, 1.0),
    ],
)
def test_other_scripts_are_scored(said: str, gold: str, f1: float, rouge: float) -> None:
    assert token_f1(said, gold) == pytest.approx(f1)
    assert rouge_l(said, gold) == pytest.approx(rouge)


@settings(deadline=None)
@given(st.text(UNSPACED + "ab 。,", min_size=1, max_size=30))
def test_every_text_is_like_itself(text: str) -> None:
    if words(text):
        assert token_f1(text, text) == 1.0
        assert rouge_l(text, text) in (1.0, 0.0)  # 0 where nothing of it is a letter or digit


def test_the_table_names_every_metric() -> None:
    assert {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l} == dict(TEXT_METRICS.items())
