"""The order of training rows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from lorabank.training.loop.sampling import LengthPools, Shares


def order(lengths: list[int], batch_size: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    return list(LengthPools(lengths, batch_size, seed, lambda: epoch))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_every_row_comes_once(lengths: list[int], batch_size: int, seed: int) -> None:
    assert sorted(order(lengths, batch_size, seed=seed)) == list(range(len(lengths)))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = [1 + i % 30 for i in range(100)]
    assert order(lengths, 8) == order(lengths, 8)
    orders = {tuple(order(lengths, 8, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_a_sampler_asks_for_the_epoch_when_it_begins() -> None:
    epochs = iter([0, 1, 0])
    sampler = LengthPools(list(range(1, 51)), 4, 0, lambda: next(epochs))
    first, second, third = list(sampler), list(sampler), list(sampler)
    assert first == third != second


def test_rows_of_a_batch_are_of_similar_length() -> None:
    chance = random.Random(0)
    lengths = [int(chance.lognormvariate(3, 1)) + 1 for _ in range(3000)]

    def padded(rows: list[int]) -> float:
        batches = [rows[i : i + 16] for i in range(0, len(rows), 16)]
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) / sum(lengths)

    shuffled = list(range(3000))
    chance.shuffle(shuffled)
    assert padded(order(lengths, 16)) < 1.15
    assert padded(shuffled) > 1.8


@pytest.mark.parametrize("rows", [10, 11, 4, 3])
def test_a_short_batch_comes_last(rows: int) -> None:
    lengths = list(range(1, rows + 1))
    for epoch in range(10):
        tail = order(lengths, 4, epoch=epoch)[rows - rows % 4 :]
        # the last of the pool sorted by length: the longest rows
        assert sorted(tail) == list(range(rows - rows % 4, rows))


def test_batches_are_not_ordered_by_length() -> None:
    lengths = list(range(1, 401))
    starts = [order(lengths, 4, epoch=epoch)[0] for epoch in range(20)]
    assert len(set(starts)) > 10


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_share_each_batch(count: int) -> None:
    # batches of 8 and one of 6; in the second case the last one has fewer rows than there are processes
    for rows in (30, 25):
        batches = list(BatchSampler(range(rows), 8, drop_last=False))
        shares = [list(Shares(BatchSampler(range(rows), 8, drop_last=False), rank, count)) for rank in range(count)]
        assert {len(share) for share in shares} == {len(batches)}
        for number, batch in enumerate(batches):
            taken = [share[number] for share in shares]
            if len(batch) < count:
                assert taken == [batch] * count
            else:
                assert sorted(row for own in taken for row in own) == batch
                assert max(map(len, taken)) - min(map(len, taken)) <= 1
