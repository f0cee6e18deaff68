"""Characters of a text: counts of 1-, 2- and 3-grams that add up over a task's rows, and naive Bayes on them.

With v the counts of a text (log(1 + count) of each gram, hashed by CRC-32 into B buckets), c_t the sum of v over a
task's rows, |c| the sum of c over its buckets, and pi = sum_t c_t / sum_t |c_t| what all tasks say,

    log p_t[b] = log (c_t[b] + a B (pi[b] + 1e-8)) - log (|c_t| + a B)
    h_t(v) = sum_b v_b log p_t[b] / sqrt(sum_b v_b)

a Dirichlet prior around pi makes a gram that a task never showed neutral. The root of the length keeps the sum, whose
terms depend on each other, from being surer than it can be.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 15
_READ = 400  # characters of a text
_LONGEST = 3
_FLOOR = 1e-8
_BLOCK = 32  # grams whose numbers of all tasks are added up at once: they stay in the processor's cache
_EPS = float(np.finfo(np.float32).eps)
_NOTHING = np.uint32(0xFFFFFFFF)  # the state of CRC-32 before the first byte
_STEPS = np.array([zlib.crc32(bytes([byte ^ 0xFF])) ^ 0xFF000000 for byte in range(256)], np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class Grams:
    """Counts of buckets.

    Attributes:
        buckets: uint16 [m], ascending.
        counts: float64 [m], above 0.
    """

    buckets: NDArray[np.uint16]
    counts: NDArray[np.float64]

    def minus(self, other: Grams) -> Grams:
        """The counts without others that are part of them."""
        left = dense(self) - dense(other)
        return sparse(np.where(left > _FLOOR, left, 0))


def of_text(text: str) -> Grams:
    """The grams of a text's first characters, case kept."""
    hashes = np.concatenate(list(_hashes(f" {text[:_READ]} ")))
    buckets, counts = np.unique(hashes & (BUCKETS - 1), return_counts=True)
    return Grams(buckets.astype(np.uint16), np.log1p(counts))


def _hashes(text: str) -> Iterator[NDArray[np.uint32]]:
    """CRC-32 of all 1-grams of a text in UTF-8, of all 2-grams and so on: each is a step from the shorter one."""
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    starts = np.flatnonzero((data & 0xC0) != 0x80)
    lengths = np.diff(starts, append=len(data))
    state = np.full(len(starts), _NOTHING, np.uint32)
    for n in range(min(_LONGEST, len(starts))):
        state, first, width = state[: len(starts) - n], starts[n:], lengths[n:]
        for place in range(width.max()):
            there = place < width
            step = _STEPS[(state ^ data[np.where(there, first + place, 0)]) & 0xFF] ^ (state >> 8)
            state = np.where(there, step, state)
        yield state ^ _NOTHING


def of_texts(texts: Iterable[str]) -> Grams:
    """The sum over texts."""
    total = np.zeros(BUCKETS)
    for text in texts:
        one = of_text(text)
        total[one.buckets] += one.counts
    return sparse(total)


def dense(grams: Grams) -> NDArray[np.float64]:
    """All buckets, [B]."""
    total = np.zeros(BUCKETS)
    total[grams.buckets] = grams.counts
    return total


def sparse(counts: NDArray[np.float64]) -> Grams:
    """The buckets [B] that are not empty."""
    buckets = np.flatnonzero(counts)
    return Grams(buckets.astype(np.uint16), counts[buckets])


class NaiveBayes:
    """How likely a text's grams are in each task.

    A bucket that a task never showed has the same probability in all tasks, up to |c_t|; what is kept of a task is how
    much its own counts add to that.

    Args:
        tasks: The counts of each.
        prior: a.
        weight: What h_t is multiplied by, at least 0.
    """

    def __init__(self, tasks: Sequence[Grams], prior: float, weight: float) -> None:
        pooled = np.zeros(BUCKETS)
        for task in tasks:
            pooled[task.buckets] += task.counts
        extra = prior * BUCKETS
        floor = extra * (pooled / max(pooled.sum(), _FLOOR) + _FLOOR)
        self._common = np.log(floor)
        self._added = np.zeros((BUCKETS, len(tasks)), np.float32)
        for t, task in enumerate(tasks):
            self._added[task.buckets, t] = np.log1p(task.counts / floor[task.buckets])
        self._sizes = np.log([task.counts.sum() + extra for task in tasks])
        self._weight = weight

    @property
    def tasks(self) -> int:
        """T."""
        return len(self._sizes)

    def of(self, texts: Sequence[str]) -> GramScores:
        """The scores of n texts, each computed when it is asked for."""
        return GramScores(self, texts)

    def added(self, buckets: NDArray[np.uint16]) -> NDArray[np.float32]:
        """What their own counts add to log p_t of m buckets, at least 0, [m, T]."""
        return self._added.take(buckets.astype(np.intp), axis=0, mode="clip")

    def scores(self, grams: Grams, own: NDArray[np.float64], tasks: slice = slice(None)) -> NDArray[np.float64]:
        """The score of some tasks, w h_t, from what their own counts add over all grams of a text."""
        total = grams.counts.sum()
        h = (own + grams.counts @ self._common[grams.buckets] - total * self._sizes[tasks]) / np.sqrt(total)
        return np.asarray(self._weight * h)


class GramScores:
    """w h_t of n texts in T tasks, with the weight w of `NaiveBayes`.

    A text by itself is compared with all tasks in float32, whose rounding is bounded, and in float64 with those that
    are asked for: reading its grams' numbers of all tasks takes most of the time.

    Args:
        bayes: The tasks.
        texts: n texts.
    """

    def __init__(self, bayes: NaiveBayes, texts: Sequence[str]) -> None:
        self._bayes = bayes
        self._grams = [of_text(text) for text in texts]

    @cached_property
    def every(self) -> NDArray[np.float64]:
        """All of them, [n, T]."""
        found = np.empty((len(self._grams), self._bayes.tasks))
        for i, grams in enumerate(self._grams):
            own = np.zeros(self._bayes.tasks)
            for start in range(0, len(grams.counts), _BLOCK):
                of = slice(start, start + _BLOCK)
                own += grams.counts[of] @ self._bayes.added(grams.buckets[of]).astype(np.float64)
            found[i] = self._bayes.scores(grams, own)
        return found

    def bounds(self) -> NDArray[np.float64]:
        """Numbers that none of them lies above, [n, T]."""
        if len(self._grams) != 1:
            return self.every
        (grams,) = self._grams
        own = (grams.counts.astype(np.float32) @ self._added).astype(np.float64)
        return self._bayes.scores(grams, own * (1 + (len(grams.counts) + 4) * _EPS))[None]

    def of(self, task: int, texts: NDArray[np.intp]) -> NDArray[np.float64]:
        """Those of some texts in one task."""
        if len(self._grams) != 1:
            return np.asarray(self.every[texts, task])
        (grams,) = self._grams
        own = np.array([grams.counts @ self._added[:, task]])
        return self._bayes.scores(grams, own, slice(task, task + 1))[texts]

    @cached_property
    def _added(self) -> NDArray[np.float32]:
        return self._bayes.added(self._grams[0].buckets)
