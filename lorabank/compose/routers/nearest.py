r"""The nearest of many prototypes: screened in float32 by one product, settled in float64.

With prototypes p_j of width d, and q_j = -2 p_j (a power of two: no rounding), the squared distances of a query x are

    |x - p_j|^2 = |x|^2 + s_j,   s_j = q_j . x + |p_j|^2

One product of the queries with the contiguous float32 matrix Q [d, K] gives every s_j: each prototype is read once,
half the bytes of float64. Its rounding is bounded. With eps = 2^-23 and S = (|x| + max_j |p_j|)^2,

    |computed s_j - s_j| <= (d + 4) eps S / 2

(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). So whatever may be the nearest prototype of one
of the two best tasks is among the few whose computed s_j lies within (d + 4) eps S of the second best task's, and
those are measured again in float64, as differences. The choice is that of float64; only the memory is float32's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.ranking import TIE, Ranked, rank

_EPS = float(np.finfo(np.float32).eps)
_SCREENED = 1 << 22  # numbers of a block of queries
_CANDIDATES = 1 << 16  # numbers of a block that is measured again: stays in the cache


class NearestPrototypes:
    """Prototypes of T tasks, K in all.

    Args:
        tasks: One float32 [k_t, d] for each task, k_t >= 1.
    """

    def __init__(self, tasks: Sequence[NDArray[np.float32]]) -> None:
        counts = [len(prototypes) for prototypes in tasks]
        self._starts = np.cumsum([0, *counts[:-1]])
        self._owner = np.repeat(np.arange(len(counts)), counts)
        # [d, K]: the product for a single query streams rows of K numbers, faster than K scalar products of d.
        self._minus_twice = np.empty((tasks[0].shape[1], len(self._owner)), np.float32)
        for start, prototypes in zip(self._starts, tasks, strict=True):
            np.multiply(prototypes.T, -2, out=self._minus_twice[:, start : start + len(prototypes)])
        squares = np.einsum("dk,dk->k", self._minus_twice, self._minus_twice, dtype=np.float64) / 4
        self._squares = squares.astype(np.float32)
        self._longest = float(np.sqrt(squares.max()))

    def distances(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, d] queries to [n, T] squared distances to each task's nearest prototype, all in float64."""
        prototypes = self._minus_twice.astype(np.float64) / -2
        all_pairs = (rows**2).sum(1, keepdims=True) - 2 * rows @ prototypes + (prototypes**2).sum(0)
        return np.asarray(np.minimum.reduceat(all_pairs, self._starts, axis=1))

    def rank(self, rows: NDArray[np.float64]) -> Ranked:
        """[n, d] queries to the nearest task and its margin, in squared distances."""
        size = max(1, _SCREENED // len(self._owner))
        blocks = [self._rank(rows[start : start + size]) for start in range(0, max(1, len(rows)), size)]
        if len(blocks) == 1:
            return blocks[0]
        task, score, margin = (
            np.concatenate([getattr(block, name) for block in blocks]) for name in ("task", "score", "margin")
        )
        return Ranked(task, score, margin)

    def _rank(self, rows: NDArray[np.float64]) -> Ranked:
        screened = rows.astype(np.float32) @ self._minus_twice
        screened += self._squares
        by_task = np.minimum.reduceat(screened, self._starts, axis=1)
        second = np.partition(by_task, 1, axis=1)[:, 1] if by_task.shape[1] > 1 else by_task[:, 0]
        scale = (np.sqrt((rows**2).sum(1)) + self._longest) ** 2
        limit = second + (len(self._minus_twice) + 4) * _EPS * scale + TIE * (1 + scale)
        above = np.nextafter(limit.astype(np.float32), np.float32(np.inf))
        row, prototype = np.divmod(np.flatnonzero(screened <= above[:, None]), len(self._owner))
        scores = np.full(by_task.shape, -np.inf)
        step = max(1, _CANDIDATES // len(self._minus_twice))
        for start in range(0, len(row), step):
            at, near = row[start : start + step], prototype[start : start + step]
            apart = self._minus_twice[:, near].T * 0.5 + rows[at]
            np.maximum.at(scores, (at, self._owner[near]), -np.einsum("md,md->m", apart, apart))
        return rank(scores)
