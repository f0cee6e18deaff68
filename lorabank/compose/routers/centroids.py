"""k-means: the centroids of a task's features.

Lloyd's iterations from centres drawn by greedy k-means++, the best of several draws. The draws and the order of the
sums are those of scikit-learn's ``KMeans``, so the same rows and seed give the numbers that it gives; importing that
package for this alone would cost ten times all iterations of a task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Labels = NDArray[np.intp]

_DRAWS = 10
_ITERATIONS = 300
_TOLERANCE = 1e-4


def kmeans(rows: Rows, clusters: int, seed: int) -> Rows:
    """Centroids ``[clusters, d]`` in float64.

    Args:
        rows: ``[n, d]``, finite.
        clusters: k, at most as many as there are distinct rows.
        seed: Of the draws.

    Source:
        Lloyd, Least squares quantization in PCM (1982); Arthur and Vassilvitskii, k-means++ (2007), with the greedy
        choice among several candidates that they propose.
    """
    mean = rows.mean(0)
    rows = rows - mean  # distances keep more digits near the origin
    squares = np.einsum("ij,ij->i", rows, rows)
    tolerance = _TOLERANCE * float(np.var(rows, axis=0).mean())
    random = np.random.RandomState(seed)
    best: tuple[float, Labels, Rows] | None = None
    for _ in range(_DRAWS):
        centres, labels = _lloyd(rows, _drawn(rows, squares, clusters, random), tolerance)
        inertia = float(np.square(rows - centres[labels]).sum())
        # equal clusters under other numbers may differ in the last digit of the sum
        if best is None or (inertia < best[0] and not _same(labels, best[1])):
            best = inertia, labels, centres
    assert best is not None
    return np.asarray(best[2] + mean)


def _drawn(rows: Rows, squares: Rows, clusters: int, random: np.random.RandomState) -> Rows:
    """First centres: each is the best of some rows, drawn by their squared distance to the nearest centre so far."""
    n, ones = len(rows), np.ones(len(rows))
    chosen = [int(random.choice(n, p=ones / n))]
    nearest = _distances(rows[chosen], rows, squares)[0]
    total = nearest @ ones
    for _ in range(1, clusters):
        drawn = random.uniform(size=2 + int(np.log(clusters))) * total
        candidates = np.minimum(np.searchsorted(np.cumsum(nearest), drawn), n - 1)
        closer = np.minimum(nearest, _distances(rows[candidates], rows, squares))
        totals = closer @ ones
        pick = int(totals.argmin())
        chosen.append(int(candidates[pick]))
        nearest, total = closer[pick], totals[pick]
    return rows[chosen]


def _distances(centres: Rows, rows: Rows, squares: Rows) -> Rows:
    """Squared distances ``[k, n]``."""
    found = -2 * (centres @ rows.T) + np.einsum("ij,ij->i", centres, centres)[:, None] + squares
    return np.asarray(np.maximum(found, 0))


def _lloyd(rows: Rows, centres: Rows, tolerance: float) -> tuple[Rows, Labels]:
    """Centres and each row's, once no row changes its centre or the centres hardly move."""
    before: Labels | None = None
    for _ in range(_ITERATIONS):
        labels = _nearest(rows, centres)
        moved = _means(rows, labels, centres)
        shift = float(np.square(np.linalg.norm(moved - centres, axis=1)).sum())
        centres = moved
        if before is not None and np.array_equal(labels, before):
            return centres, labels
        if shift <= tolerance:
            break
        before = labels
    return centres, _nearest(rows, centres)


def _nearest(rows: Rows, centres: Rows) -> Labels:
    return np.asarray((np.einsum("ij,ij->i", centres, centres) - 2 * (rows @ centres.T)).argmin(1))


def _means(rows: Rows, labels: Labels, centres: Rows) -> Rows:
    """The mean of each cluster; a centre without rows, which rows that differ by rounding alone can leave, stays."""
    means = centres.copy()
    for k, count in enumerate(np.bincount(labels).tolist()):
        if count:
            means[k] = rows[labels == k].sum(0) * (1 / count)
    return means


def _same(labels: Labels, others: Labels) -> bool:
    """Whether each cluster lies within one of the others, whatever their numbers."""
    of = labels.tolist()
    return len(set(zip(of, others.tolist(), strict=True))) == len(set(of))
