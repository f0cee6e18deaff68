"""Rows of token ids in one array, against the lists that they stand for."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from lorabank.core.errors import DataError
from lorabank.models.tasks import token_rows
from lorabank.models.tasks.classification import Classification
from lorabank.models.tasks.encoding import encode_texts
from lorabank.models.tasks.prompting import encode_completions, encode_pairs
from lorabank.models.tasks.token_rows import Columns, TokenRows
from tests.unit.models.tasks.test_special_tokens import words

ROWS = [[5, 0, 7], [], [2**31 - 1], [1, 2]]


def test_rows_are_the_lists_that_were_given() -> None:
    rows = TokenRows(ROWS)
    assert list(rows) == ROWS
    assert [rows[i] for i in range(-4, 4)] == ROWS + ROWS
    assert list(rows[1:]) == ROWS[1:]
    assert list(rows[::-2]) == ROWS[::-2]
    assert rows.lengths == [3, 0, 1, 2]
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            rows[beyond]
    rows[0].append(9)  # a list of its own
    assert rows[0] == ROWS[0]


def test_columns_are_the_rows_of_a_table() -> None:
    table = Columns(ids=TokenRows(ROWS), label=[3, 4, 5, 6])
    expected = [{"ids": ids, "label": label} for ids, label in zip(ROWS, (3, 4, 5, 6), strict=True)]
    assert list(table) == list(table[:]) == expected
    assert (table[-1], len(table)) == (expected[-1], 4)
    with pytest.raises(IndexError):
        table[4]


def test_a_token_takes_at_most_eight_bytes() -> None:
    """Of rows as short as ten tokens, with their labels and lengths, as they are held during a training."""
    rows, size = 4000, 10
    tokenizer: Any = words("<s> $A </s>")
    texts = ["good film bad no a b c d"] * rows
    encode_texts(tokenizer, texts[:10], 64)
    tracemalloc.start()
    examples = Classification().encode(tokenizer, texts, ["x"] * rows, labels=("x",), template=None, max_length=64)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(examples.lengths) == rows * size
    assert held <= 8 * rows * size


@pytest.mark.parametrize("block", [1, 2, 3, 100])
class TestBlocks:
    TEXTS = ("good film", "</s>", "", "bad film no never a b c", "good", "a </s> b c d e f g", "no")

    @pytest.fixture(autouse=True)
    def small(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(token_rows, "_BLOCK", block)

    def test_texts_are_encoded_as_each_alone(self, block: int) -> None:
        tokenizer = words("<s> $A </s>")
        limits = [4, 9, 5, 6, 7, 8, 2]
        encoded = encode_texts(tokenizer, self.TEXTS, limits)
        alone = [encode_texts(tokenizer, [text], limit) for text, limit in zip(self.TEXTS, limits, strict=True)]
        assert list(encoded.ids) == [one.ids[0] for one in alone]
        assert list(encoded.lengths) == [one.lengths[0] for one in alone]
        assert encoded.cut == sum(one.cut for one in alone) > 0

    @pytest.mark.parametrize("template", [None, "film {text} Answer:"])
    def test_pairs_are_encoded_as_each_alone(self, block: int, template: str | None) -> None:
        tokenizer = words("<s> $A </s>")
        answers = ["good", "no never", "a", "b", "c " * 12, "d", "e f"]
        settings: dict[str, Any] = {"labels": (), "template": template, "max_length": 10, "glued": True}
        pairs = encode_pairs(tokenizer, self.TEXTS, answers, **settings)
        expected = []
        for i, (text, answer) in enumerate(zip(self.TEXTS, answers, strict=True)):
            if i == 4:  # does not fit
                with pytest.raises(DataError, match="no training row is left"):
                    encode_pairs(tokenizer, [text], [answer], **settings)
                continue
            expected.append({**encode_pairs(tokenizer, [text], [answer], **settings).rows[0], "index": i})
        assert list(pairs.rows) == expected
        assert list(pairs.lengths) == [len(row["prompt"]) + len(row["completion"]) for row in expected]
        assert pairs.dropped == 1

    def test_an_empty_answer_is_named_by_its_place(self, block: int) -> None:
        with pytest.raises(DataError, match=r"completion 6 is empty: '</s>'"):
            encode_completions(words("<s> $A"), ["a", "b", "c", "d", "e", "</s>", "f"], glued=False)
