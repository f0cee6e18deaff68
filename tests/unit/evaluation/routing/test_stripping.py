"""What is taken out of texts before they are routed again."""

from __future__ import annotations

import pytest

from lorabank.evaluation.routing.stripping import names_of, strip


@pytest.mark.parametrize(
    ("task", "sources", "names"),
    [
        ("spam", ["spam-train.jsonl", "spam-test.jsonl"], ["spam"]),
        ("news", ["/data/ag_news.train.csv"], ["news", "ag news"]),
        ("mood", ["hf:stanfordnlp/sst2:train", "C:\\rows\\Movie Reviews.csv"], ["mood", "sst2", "Movie Reviews"]),
        ("a", ["test.csv"], []),
    ],
)
def test_names_are_words_of_tasks_and_data(task: str, sources: list[str], names: list[str]) -> None:
    assert names_of(task, sources) == names


def test_names_are_found_as_words_whatever_joins_them() -> None:
    found = strip(["the AG-News of today", "agnews", "ag_news!", "flag news", "imagine"], ["ag news"])
    assert found.texts == ("the  of today", "agnews", "!", "flag news", "imagine")
    assert found.names == {"ag news": 3}


def test_an_instruction_is_what_many_rows_begin_and_end_with() -> None:
    asked = [f"Is the review good or bad? {word} film number {word} Answer with one word:" for word in "abcdefghij"]
    other = ["a line of its own", "and one more"]
    found = strip([*asked, *other], [])
    assert found.texts[:2] == ("a film number a", "b film number b")
    assert found.texts[10:] == tuple(other)
    assert found.phrases == {"Is the review good or bad?": 10, "Answer with one word:": 10}


def test_each_of_several_instructions_is_found() -> None:
    rows = [f"{ask} {k} rest" for ask in ("Tell me now:", "Say what this is:") for k in range(10)]
    found = strip(rows, [])
    assert set(found.texts) == {f"{k} rest" for k in range(10)}
    assert found.phrases == {"Tell me now:": 10, "Say what this is:": 10}


def test_a_few_equal_rows_are_no_instruction() -> None:
    rows = ["one two three four", "one two three five", *(f"{k} {k} {k} {k}" for k in range(20))]
    assert strip(rows, []).texts == tuple(rows)
    same = strip(["just the same text"] * 5, [])
    assert set(same.texts) == {"text"}
