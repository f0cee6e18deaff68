"""Routers: which task does a text belong to, judged by the frozen base's features alone.

A task is kept as statistics of its training features, so a new task needs no row of an old one, and the router
of stage t is made of the first t statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import ConfigError, DamagedError

Floats = NDArray[np.floating[Any]]

TIE = 1e-9
"""Scores closer than this (relative to their size) are equal: rounding must not pick the task."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskStatistics:
    """What routing keeps of a task's n training features of width d.

    Attributes:
        centroids: float32 [k, d], k-means centroids.
        mean: float32 [d].
        scatter: float32 [d, d], sum over rows of (x - mean)(x - mean)^T.
        n: Number of rows.
    """

    centroids: NDArray[np.float32]
    mean: NDArray[np.float32]
    scatter: NDArray[np.float32]
    n: int

    def to_bytes(self) -> bytes:
        """As safetensors; the same statistics give the same bytes."""
        from safetensors.numpy import save

        tensors = {"centroids": self.centroids, "mean": self.mean, "scatter": self.scatter, "n": np.array([self.n])}
        return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> TaskStatistics:
        """Read what ``to_bytes`` wrote.

        Raises:
            DamagedError: It holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            found = cls(tensors["centroids"], tensors["mean"], tensors["scatter"], int(tensors["n"][0]))
        except (SafetensorError, KeyError, IndexError) as error:
            raise DamagedError(f"routing statistics cannot be read: {error!r}") from error
        d = found.mean.shape[-1]
        arrays = (found.centroids, found.mean, found.scatter)
        shapes = [a.shape for a in arrays] == [(len(found.centroids), d), (d,), (d, d)]
        if not shapes or found.n < 1 or not len(found.centroids) or not all(np.isfinite(a).all() for a in arrays):
            raise DamagedError("routing statistics have wrong shapes or values that are not finite")
        return found


def fit_statistics(features: Floats, clusters: int, seed: int) -> TaskStatistics:
    """Statistics of one task.

    Args:
        features: [n, d], n >= 1, finite.
        clusters: Centroids; fewer where the rows do not differ enough.
        seed: Seed of k-means.

    Source:
        CoLoR (arXiv 2311.17601): k-means with 5 clusters on L2-normalised features.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError("features must be a matrix with at least one row, all finite")
    with threadpool_limits(limits=1):  # several threads add up in any order: other last bits in each run
        mean = rows.mean(0)
        scatter = (rows - mean).T @ (rows - mean)
        centroids = _centroids(rows, clusters, seed)
    return TaskStatistics(centroids.astype(np.float32), mean.astype(np.float32), scatter.astype(np.float32), len(rows))


class Router(Protocol):
    """Tells tasks apart."""

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] scores; the higher the likelier."""
        ...

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks; equal scores go to the earlier task."""
        ...


class KMeansRouter:
    """Nearest centroid; the score of a task is minus the squared distance to its nearest centroid.

    Args:
        statistics: Of each task, in the order of the sequence.
    """

    def __init__(self, statistics: Sequence[TaskStatistics]) -> None:
        self._centroids = np.concatenate([s.centroids for s in statistics]).astype(np.float64)
        self._starts = np.cumsum([0, *(len(s.centroids) for s in statistics[:-1])])

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] scores."""
        rows = np.asarray(features, np.float64)
        distances = (rows**2).sum(1, keepdims=True) - 2 * rows @ self._centroids.T + (self._centroids**2).sum(1)
        return -np.minimum.reduceat(distances, self._starts, axis=1)

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks."""
        return first_best(self.scores(features))


class GaussianRouter:
    """Regularised discriminant analysis: a mean per task, a shrunk covariance that tasks share for the most part.

    With S_w the pooled covariance within tasks, S_t a task's own, and l, b from 0 to 1:

        C_t = (1 - b) S_w + b S_t,   D_t = (1 - l) C_t + l tr(C_t)/d I,
        score_t(x) = -(x - m_t)^T D_t^-1 (x - m_t) / 2 - log det(D_t) / 2

    which is the logarithm of the posterior under equal priors, up to a constant of the row. b = 0 is linear
    discriminant analysis with one covariance for all. A small b tells a wide task from a narrow one.

    Args:
        statistics: Of each task, in the order of the sequence.
        shrinkage: l.
        own_covariance: b.

    Raises:
        ConfigError: A share is out of bounds, or a covariance has no inverse (a shrinkage above 0 gives it one).

    Source:
        Friedman, Regularized Discriminant Analysis, Journal of the American Statistical Association 84 (1989).
    """

    def __init__(
        self, statistics: Sequence[TaskStatistics], shrinkage: float = 0.1, own_covariance: float = 0.0
    ) -> None:
        for name, share in (("shrinkage", shrinkage), ("own_covariance", own_covariance)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} = {share}: must be from 0 to 1")
        self._means = np.stack([s.mean for s in statistics]).astype(np.float64)
        scatter = np.sum([s.scatter.astype(np.float64) for s in statistics], axis=0)
        within = np.asarray(scatter / sum(s.n for s in statistics))
        if own_covariance == 0:
            self._linear(_shrunk(within, shrinkage), invertible=shrinkage > 0)
            return
        own = [(1 - own_covariance) * within + own_covariance * s.scatter / s.n for s in statistics]
        try:
            factors = [np.linalg.cholesky(_shrunk(covariance, shrinkage)) for covariance in own]
        except np.linalg.LinAlgError as error:
            raise ConfigError(f"shrinkage = {shrinkage}: a task's covariance has no inverse, use more") from error
        self._whiten: list[NDArray[np.float64]] | None = [np.linalg.inv(factor) for factor in factors]
        self._halves = np.array([np.log(np.diag(factor)).sum() for factor in factors])

    def _linear(self, covariance: NDArray[np.float64], *, invertible: bool) -> None:
        self._whiten = None
        solve = np.linalg.solve if invertible else lambda a, b: np.linalg.lstsq(a, b)[0]
        self._weights = solve(covariance, self._means.T)
        self._offsets = -0.5 * (self._means.T * self._weights).sum(0)

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] scores."""
        rows = np.asarray(features, np.float64)
        if self._whiten is None:
            return np.asarray(rows @ self._weights + self._offsets)
        squares = [((rows - m) @ w.T) ** 2 for m, w in zip(self._means, self._whiten, strict=True)]
        return np.asarray(np.stack([-0.5 * square.sum(1) for square in squares], axis=1) - self._halves)

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks."""
        return first_best(self.scores(features))


def _shrunk(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """Drawn towards a multiple of the identity; the identity where nothing varies (the nearest mean then wins)."""
    identity = np.eye(len(covariance))
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(identity) * identity
    return shrunk if shrunk.any() else identity


def make_router(
    kind: str, statistics: Sequence[TaskStatistics], *, shrinkage: float = 0.1, own_covariance: float = 0.0
) -> Router:
    """The router called ``"kmeans"`` or ``"gaussian"``.

    Raises:
        ConfigError: There is no router of that name.
    """
    if kind == "kmeans":
        return KMeansRouter(statistics)
    if kind == "gaussian":
        return GaussianRouter(statistics, shrinkage, own_covariance)
    raise ConfigError(f"router {kind!r} is not known; there are kmeans and gaussian")


def first_best(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n, T] scores to the first task of each row whose score is the best, up to rounding."""
    best = scores.max(1, keepdims=True)
    return np.asarray(np.argmax(scores >= best - TIE * np.maximum(1.0, np.abs(best)), axis=1), np.int64)


def _centroids(rows: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.float64]:
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    distinct = len(np.unique(rows, axis=0))
    with warnings.catch_warnings():  # rows that differ by rounding alone may give fewer clusters than asked for
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_clusters=min(clusters, distinct), n_init=10, random_state=seed).fit(rows)
    return np.asarray(fitted.cluster_centers_)
