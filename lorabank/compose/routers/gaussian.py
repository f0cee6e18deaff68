"""``gaussian``: the likeliest task under one Gaussian each, with covariances that tasks share for the most part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import RouterMethod
from lorabank.compose.routers.covariances import Covariances, packed
from lorabank.compose.routers.ranking import TIE, Ranked, rank
from lorabank.compose.routers.screening import Screening
from lorabank.compose.routers.shortlist import Shortlist
from lorabank.compose.routers.statistics import Floats, TaskStatistics
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting

_FEW_TASKS = 16
"""So many are all scored: bounds would save nothing."""

_FEW_TEXTS = 8
"""For so many it pays to rule out tasks before they are factored."""

_TRIANGLE_BYTES = 1 << 26
"""Of all tasks' scatters; where they come to more, each is read again when it is needed, in the first call."""

_FIRST = 2
"""Tasks with the highest bounds, whose scores say how high the others must reach."""

_BLOCK = 1 << 20  # numbers of a block of features, or of bounds

_FACTORS, _BOUNDS = 150, 1500
"""How many texts could be scored among all tasks in the time that their factors take, and in that of their bounds."""


@dataclass(frozen=True)
class Gaussian(RouterMethod):
    """Regularised discriminant analysis."""

    paper = "Friedman, JASA 84 (1989)"

    shrinkage: float = setting(0.1, "Shrinkage of the covariance towards a multiple of the identity.", ge=0, le=1)
    own_covariance: float = setting(0.1, "Share of a task's own covariance; 0: one for all.", ge=0, le=1)

    def build(self, statistics: Sequence[TaskStatistics]) -> GaussianRouter:
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
    D_t = L_t L_t^T the form is ``|L_t^-1 (x - m_t)|^2``.

    For b > 0 the router makes L_t where a score is needed. Among many tasks few are: upper bounds on the scores show
    which tasks can be one of a text's two best. Those alone are scored, so choice and margin are the ones that all
    scores give. A call with a few texts, where it is the first, reads each task's statistics once more and lets
    them go (`lorabank.compose.routers.screening`). From the second call on the router holds the lower
    triangle of each task's scatter, in float32, as it does at once where all of them are small. When enough texts have
    come to pay for them it makes bounds that last (`lorabank.compose.routers.shortlist`).

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
        few = len(statistics) <= _FEW_TASKS
        means: list[NDArray[np.float32]] = []
        triangles: list[NDArray[np.float32]] = []
        counts: list[int] = []
        traces: list[float] = []
        scatter = np.zeros((1, 1))
        for one in statistics:
            if not means:
                scatter = np.zeros(one.scatter.shape)
            scatter += one.scatter
            means.append(one.mean)
            counts.append(one.n)
            traces.append(float(one.scatter.diagonal().sum(dtype=np.float64)))
            if own_covariance and (few or len(statistics) * one.scatter.nbytes // 2 <= _TRIANGLE_BYTES):
                triangles.append(packed(one.scatter))
        self._means = np.stack(means).astype(np.float64)
        self._within = scatter / sum(counts)
        self._shrinkage, self._own = shrinkage, own_covariance
        self._held = own_covariance == 0 or bool(triangles)
        if own_covariance == 0:
            self._linear(_shrunk(self._within, shrinkage), invertible=shrinkage > 0)
            return
        self._statistics = statistics
        self._counts, self._traces = counts, traces
        self._covariances = self._of(triangles.__getitem__ if triangles else self._triangle)
        self._covariances.keeps_factors = few
        self._shortlist: Shortlist | None = None
        self._asked = 0

    def _of(self, scatters: Callable[[int], NDArray[np.float32]]) -> Covariances:
        return Covariances(scatters, self._counts, self._within, self._shrinkage, self._own)

    def _scatter(self, task: int) -> NDArray[np.float32]:
        return self._statistics[task].scatter

    def _triangle(self, task: int) -> NDArray[np.float32]:
        return packed(self._scatter(task))

    def _hold(self) -> None:
        """Have all triangles in memory from now on."""
        if not self._held:
            self._covariances = self._of([packed(one.scatter) for one in self._statistics].__getitem__)
            self._held = True

    def _linear(self, covariance: NDArray[np.float64], *, invertible: bool) -> None:
        solve = np.linalg.solve if invertible else lambda a, b: np.linalg.lstsq(a, b)[0]
        self._weights = solve(covariance, self._means.T)
        self._offsets = -0.5 * (self._means.T * self._weights).sum(0)

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] scores."""
        rows = np.asarray(features, np.float64)
        if self._own == 0:
            return np.asarray(rows @ self._weights + self._offsets)
        tasks, d = self._means.shape
        scores = np.empty((len(rows), tasks))
        step = max(1, _BLOCK // d)
        for t in range(tasks):
            for start in range(0, len(rows), step):
                scores[start : start + step, t] = self._score(t, rows[start : start + step])
        return scores

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the likeliest task and its margin, in log-odds."""
        rows = np.asarray(features, np.float64)
        shortlist = self._shortlisting(len(rows))
        if shortlist is None:
            return rank(self._screened(rows) if self._screens(len(rows)) else self.scores(rows))
        scores = np.full((len(rows), len(self._means)), -np.inf)
        step = max(1, _BLOCK // max(self._means.shape))
        for start in range(0, len(rows), step):
            of = slice(start, start + step)
            self._score_likely(rows[of], shortlist.bounds(rows[of]), scores[of])
        return rank(scores)

    def _shortlisting(self, count: int) -> Shortlist | None:
        """The bounds, made when scoring every task for all texts so far would have cost as much as they do."""
        if self._own == 0 or len(self._means) <= _FEW_TASKS:
            return None
        again = self._asked > 0
        self._asked += _FACTORS + count
        if again or self._asked > _BOUNDS:
            self._hold()
        if self._asked > _BOUNDS and not self._covariances.keeps_factors:
            self._covariances.keeps_factors = True
            shared = self._covariances.shared()
            if shared is not None:
                of = self._covariances
                each = ((of.whole(t), of.factor(t).half) for t in range(len(self._means)))
                self._shortlist = Shortlist(shared, each, self._means)
        return self._shortlist

    def _screens(self, count: int) -> bool:
        return not self._held and self._shrinkage > 0 and 0 < count <= _FEW_TEXTS

    def _screened(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores [n, T] of every task that can be one of a row's two best, up to ties, and of some others."""
        screening = Screening(rows, self._means, self._counts, self._traces, self._within, self._shrinkage, self._own)
        scores = np.full((len(rows), len(self._means)), -np.inf)
        for task in screening.likely():
            reach = _reach(scores)[:, 0]
            if not np.isneginf(reach).any():
                scatter = self._scatter(task)
                ways = (screening.rough_bounds, screening.bounds)
                if any((bounds(task, scatter) < reach).all() for bounds in ways):
                    continue
            scores[:, task] = self._score(task, rows)
        return scores

    def _score_likely(
        self, rows: NDArray[np.float64], bounds: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Fill in the scores [n, T] of every task that can be one of a row's two best, up to ties."""
        highest = np.argpartition(bounds, -_FIRST, axis=1)[:, -_FIRST:]
        first = np.zeros(bounds.shape, np.bool_)
        np.put_along_axis(first, highest, True, axis=1)
        self._fill(rows, first, scores)
        self._fill(rows, ~first & (bounds >= _reach(scores)), scores)

    def _fill(self, rows: NDArray[np.float64], wanted: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        for t in np.flatnonzero(wanted.any(0)):
            of = np.flatnonzero(wanted[:, t])
            scores[of, t] = self._score(int(t), rows[of])

    def _score(self, task: int, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, d] features to [n] scores of one task."""
        factor = self._covariances.factor(task)
        white = factor.whiten(rows - self._means[task])
        return np.asarray(-0.5 * np.einsum("dn,dn->n", white, white) - factor.half)

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks."""
        return self.rank(features).task


def _reach(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, T] scores so far to [n, 1]: what another must come to, so that it can be one of the two best of its row."""
    second = np.partition(scores, -2, axis=1)[:, -2, None]
    return np.asarray(second - TIE * np.maximum(1.0, np.abs(second)))


def _shrunk(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """Drawn towards a multiple of the identity; the identity where nothing varies (the nearest mean then wins)."""
    identity = np.eye(len(covariance))
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(identity) * identity
    return shrunk if shrunk.any() else identity
