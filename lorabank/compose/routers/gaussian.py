"""``gaussian``: the likeliest task under one Gaussian each, with covariances that tasks share for the most part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import RouterMethod
from lorabank.compose.routers.ranking import Ranked, rank
from lorabank.compose.routers.statistics import Floats, TaskStatistics
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting

_BLOCK = 1 << 20  # numbers of a block of whitened queries, and of the factors that whiten them


@dataclass(frozen=True)
class Gaussian(RouterMethod):
    """Regularised discriminant analysis."""

    paper = "Friedman, JASA 84 (1989)"

    shrinkage: float = setting(0.1, "Shrinkage of the covariance towards a multiple of the identity.", ge=0, le=1)
    own_covariance: float = setting(0.1, "Share of a task's own covariance; 0: one for all.", ge=0, le=1)

    def build(self, statistics: Iterable[TaskStatistics]) -> GaussianRouter:
        """The router over some tasks."""
        return GaussianRouter(statistics, self.shrinkage, self.own_covariance)

    def identity(self) -> list[float]:
        """Both shares."""
        return [self.shrinkage, self.own_covariance]


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
