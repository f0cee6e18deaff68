"""Routers: which task does a text belong to, judged by the frozen base's features alone.

A task is kept as statistics of its training features, so a new task needs no row of an old one, and the router
of stage t is made of the first t statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.nearest import NearestPrototypes
from lorabank.compose.ranking import Ranked, rank
from lorabank.core.errors import ConfigError, DamagedError

Floats = NDArray[np.floating[Any]]

_BLOCK = 1 << 20  # numbers of a block of whitened queries, and of the factors that whiten them


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

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the best task of each, equal scores going to the earlier one, and its margin."""
        ...

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks: what `rank` says, without the margin."""
        ...


class KMeansRouter:
    """Nearest centroid; the score of a task is minus the squared distance to its nearest centroid.

    Args:
        statistics: Of each task, in the order of the sequence.
    """

    def __init__(self, statistics: Iterable[TaskStatistics]) -> None:
        self._prototypes = NearestPrototypes([s.centroids for s in statistics])

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] scores."""
        return -self._prototypes.distances(np.asarray(features, np.float64))

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the nearest task and its margin, in squared distances."""
        return self._prototypes.rank(np.asarray(features, np.float64))

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks."""
        return self.rank(features).task


class GaussianRouter:
    """Regularised discriminant analysis: a mean per task, a shrunk covariance that tasks share for the most part.

    With S_w the pooled covariance within tasks, S_t a task's own, and l, b from 0 to 1:

        C_t = (1 - b) S_w + b S_t,   D_t = (1 - l) C_t + l tr(C_t)/d I,
        score_t(x) = -(x - m_t)^T D_t^-1 (x - m_t) / 2 - log det(D_t) / 2

    which is the logarithm of the posterior under equal priors, up to a constant of the row. b = 0 is linear
    discriminant analysis with one covariance for all. A small b tells a wide task from a narrow one. With
    D_t = L_t L_t^T the form is ``|L_t^-1 x - L_t^-1 m_t|^2``, and the stacked L_t^-1 of many tasks take one product.

    For b > 0 the router holds the lower triangle of each task's L_t^-1, in float64.

    Args:
        statistics: Of each task, in the order of the sequence; gone through once, none is kept.
        shrinkage: l.
        own_covariance: b.

    Raises:
        ConfigError: A share is out of bounds, or a covariance has no inverse (a shrinkage above 0 gives it one).

    Source:
        Friedman, Regularized Discriminant Analysis, Journal of the American Statistical Association 84 (1989).
    """

    def __init__(
        self, statistics: Iterable[TaskStatistics], shrinkage: float = 0.1, own_covariance: float = 0.0
    ) -> None:
        for name, share in (("shrinkage", shrinkage), ("own_covariance", own_covariance)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} = {share}: must be from 0 to 1")
        means, rows, scatters = [], [], []
        scatter: Any = 0.0
        for one in statistics:
            means.append(one.mean)
            rows.append(one.n)
            scatter = scatter + one.scatter.astype(np.float64)
            if own_covariance:
                scatters.append(one.scatter)
        self._means = np.stack(means).astype(np.float64)
        within = scatter / sum(rows)
        self._whiten: list[NDArray[np.float64]] = []
        if own_covariance == 0:
            self._linear(_shrunk(within, shrinkage), invertible=shrinkage > 0)
            return
        from scipy.linalg.lapack import dtrtri

        tasks, d = self._means.shape
        self._halves, self._offsets = np.empty(tasks), np.empty((tasks, d))
        self._lower = np.tri(d, dtype=bool)
        scatters.reverse()
        for t in range(tasks):  # a task's scatter is dropped where its factor is made
            covariance = (1 - own_covariance) * within + own_covariance * scatters.pop() / rows[t]
            try:
                factor = np.linalg.cholesky(_shrunk(covariance, shrinkage))
            except np.linalg.LinAlgError as error:
                raise ConfigError(f"shrinkage = {shrinkage}: a task's covariance has no inverse, use more") from error
            whiten = dtrtri(factor, lower=1)[0]  # a sixth of the work of a general inverse
            self._halves[t] = np.log(np.diag(factor)).sum()
            self._offsets[t] = whiten @ self._means[t]
            self._whiten.append(whiten[self._lower])

    def _linear(self, covariance: NDArray[np.float64], *, invertible: bool) -> None:
        solve = np.linalg.solve if invertible else lambda a, b: np.linalg.lstsq(a, b)[0]
        self._weights = solve(covariance, self._means.T)
        self._offsets = -0.5 * (self._means.T * self._weights).sum(0)

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] scores."""
        rows = np.asarray(features, np.float64)
        if not self._whiten:
            return np.asarray(rows @ self._weights + self._offsets)
        tasks, d = self._means.shape
        scores = np.empty((len(rows), tasks))
        several = max(1, _BLOCK // (d * d))
        for first in range(0, tasks, several):
            of = slice(first, first + several)
            blocks = np.zeros((len(self._whiten[of]), d, d))
            blocks[:, self._lower] = self._whiten[of]
            whiten = blocks.reshape(-1, d)
            step = max(1, _BLOCK // len(whiten))
            for start in range(0, len(rows), step):
                white = (rows[start : start + step] @ whiten.T).reshape(-1, len(whiten) // d, d)
                white -= self._offsets[of]
                scores[start : start + step, of] = -0.5 * np.einsum("ntd,ntd->nt", white, white) - self._halves[of]
        return scores

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the likeliest task and its margin, in log-odds."""
        return rank(self.scores(features))

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks."""
        return self.rank(features).task


def _shrunk(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """Drawn towards a multiple of the identity; the identity where nothing varies (the nearest mean then wins)."""
    identity = np.eye(len(covariance))
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(identity) * identity
    return shrunk if shrunk.any() else identity


def make_router(
    kind: str, statistics: Iterable[TaskStatistics], *, shrinkage: float = 0.1, own_covariance: float = 0.0
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


def _centroids(rows: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.float64]:
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    distinct = len(np.unique(rows, axis=0))
    with warnings.catch_warnings():  # rows that differ by rounding alone may give fewer clusters than asked for
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_clusters=min(clusters, distinct), n_init=10, random_state=seed).fit(rows)
    return np.asarray(fitted.cluster_centers_)
