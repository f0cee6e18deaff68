"""Blocks of rows, batches by tokens, and results that are read late."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lorabank.models.tasks.encoding import budget_batches, in_block
from lorabank.models.tasks.transfer import Results, sent


@pytest.mark.parametrize("left", [True, False])
def test_a_block_holds_its_rows_and_the_filler(left: bool) -> None:
    dice = random.Random(0)
    for _ in range(20):
        rows = [[dice.randrange(9) for _ in range(dice.randrange(7))] for _ in range(dice.randrange(1, 6))]
        block, own = in_block(rows, -5, left=left)
        longest = max(map(len, rows))
        fill = [[-5] * (longest - len(row)) for row in rows]
        pairs = list(zip(rows, fill, strict=True))
        assert block.tolist() == [gap + row if left else row + gap for row, gap in pairs]
        marks = [([False] * len(gap), [True] * len(row)) for row, gap in pairs]
        assert own.tolist() == [gap + row if left else row + gap for gap, row in marks]
        assert (block.dtype, own.dtype, block.shape) == (np.int64, np.bool_, (len(rows), longest))


@pytest.mark.parametrize("equal", [True, False])
def test_batches_by_tokens_are_full_and_no_fuller(equal: bool) -> None:
    dice = random.Random(1)
    for _ in range(50):
        widths = [dice.randrange(1, 30) for _ in range(dice.randrange(1, 40))]
        order = sorted(range(len(widths)), key=widths.__getitem__, reverse=True)
        batches = budget_batches(order, widths, 60, equal=equal)
        assert [i for batch in batches for i in batch] == order
        for batch, after in zip(batches, [*batches[1:], None], strict=True):
            widest = max(widths[i] for i in batch)
            assert len(batch) * widest <= 60
            assert not equal or len({widths[i] for i in batch}) == 1
            if after is not None and (not equal or widths[after[0]] == widest):
                assert (len(batch) + 1) * widest > 60  # the next row would not have fitted
    assert budget_batches([0, 1], [70, 5], 60) == [[0], [1]]


@pytest.mark.parametrize("late", [True, False, None])
def test_results_stand_in_their_rows_once_they_are_read(late: bool | None) -> None:
    sums, marks = np.zeros((6, 2)), np.zeros(6, np.bool_)
    results = Results(sums, marks, late=late)
    values, flags = torch.arange(12.0).reshape(6, 2), torch.tensor([True, False] * 3)
    for rows in ([4, 0], [5], [1, 3]):
        results.put(rows, values[rows], flags[rows])
    waits = late is True
    assert bool(sums.any()) != waits
    results.read()
    results.read()
    expected = values.clone()
    expected[2] = 0
    assert sums.tolist() == expected.tolist()
    assert marks.tolist() == [True, False, False, False, True, False]


def test_no_more_than_a_limit_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabank.models.tasks.transfer._WAITING", 100)
    found = np.zeros(40)
    results = Results(found, late=True)
    for first in range(0, 40, 4):
        results.put(range(first, first + 4), torch.ones(4, dtype=torch.float64))
    assert found.sum() >= 40 - 100 // 8
    results.read()
    assert found.sum() == 40


def test_what_is_sent_to_a_cpu_is_itself() -> None:
    tensor = torch.arange(3)
    assert sent({"a": tensor}, torch.device("cpu"))["a"] is tensor
