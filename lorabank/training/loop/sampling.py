"""The order of training rows: seeded, new in each epoch, rows of similar length side by side; and who takes which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import BatchSampler, Sampler

_POOL = 50
"""Batches that are shuffled together and then sorted by length: padding near 1.05 of the real tokens."""


class LengthPools(Sampler[int]):
    """Row numbers whose order depends on the seed and the epoch alone, so that a resumed run sees the same batches.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        epoch: Gives the epoch that is about to begin, from 0.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths = torch.tensor(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """One pass: shuffle, sort by length within pools, shuffle the batches (a short last one stays last)."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch())
        order = torch.randperm(len(self), generator=generator)
        pool = self._batch_size * _POOL
        ordered = torch.cat([part[self._lengths[part].argsort(stable=True)] for part in order.split(pool)])
        batches = list(ordered.split(self._batch_size))
        whole, rest = (batches, []) if len(batches[-1]) == self._batch_size else (batches[:-1], batches[-1:])
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        yield from torch.cat([*shuffled, *rest]).tolist()


class Shares(Sampler[list[int]]):
    """The rows of each batch that one of several processes takes: every W-th, so that lengths are much the same.

    Of a batch with fewer rows than processes each takes all: the mean of their gradients is that of the batch again.

    Args:
        batches: The rows of each batch.
        rank: Number of the process.
        count: W.
    """

    def __init__(self, batches: BatchSampler, rank: int, count: int) -> None:
        self._batches = batches
        self._rank = rank
        self._count = count

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """One pass: never an empty share."""
        for rows in self._batches:
            yield rows[self._rank :: self._count] if len(rows) >= self._count else rows
