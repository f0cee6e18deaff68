"""``gaussian``: the likeliest task under one Gaussian each, with covariances that tasks share for the most part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import LayerMethod
from lorabank.compose.routers.gaussians.covariances import Covariances, Scatter, Triangle
from lorabank.compose.routers.gaussians.likely import likely_scores
from lorabank.compose.routers.gaussians.screening import Screening
from lorabank.compose.routers.gaussians.shortlist import Shortlist
from lorabank.compose.routers.ranking import Ranked, rank
from lorabank.compose.routers.statistics import Floats, Statistics, StoredStatistics, TaskStatistics
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting

_FEW_TASKS = 16
"""So many are all scored: bounds would save nothing."""

_FEW_TEXTS = 8
"""For so many it pays to rule out tasks before they are factored."""

_TRIANGLE_BYTES = 1 << 26
"""Of all tasks' scatters; where they come to more, each is read again when it is needed, in the first call."""

_BLOCK = 1 << 20  # numbers of a block of features, or of bounds

_FACTORS, _BOUNDS = 150, 1500
"""How many texts could be scored among all tasks in the time that their factors take, and in that of their bounds."""


@dataclass(frozen=True)
class Gaussian(LayerMethod):
    """Regularised discriminant analysis."""

    paper = "Friedman, JASA 84 (1989)"

    shrinkage: float = setting(0.1, "Shrinkage of the covariance towards a multiple of the identity.", ge=0, le=1)
    own_covariance: float = setting(0.1, "Share of a task's own covariance; 0: one for all.", ge=0, le=1)

    def build(self, statistics: Sequence[TaskStatistics]) -> GaussianRouter:
        """The router over some tasks."""
        return GaussianRouter(statistics, self.shrinkage, self.own_covariance)

    def identity(self) -> list[float]:
        """Both shares, and the layer where it is not the last."""
        return [self.shrinkage, self.own_covariance, *([self.layer] if self.layer else [])]


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
    scores give. A call with a few texts looks at each task's statistics once more and lets them go
    (`lorabank.compose.routers.gaussians.screening`). Where they are stored, the router holds the lower triangle of
    each task's scatter from the second call on, in float32, as it does at once where all of them are small. When
    enough texts have come to pay for them it makes bounds that last
    (`lorabank.compose.routers.gaussians.shortlist`).

    Args:
        statistics: Of each task, in the order of the sequence.
        shrinkage: l.
        own_covariance: b.
        within: S_w, float64 [d, d]; None: it is computed.

    Raises:
        ConfigError: A share is out of bounds, or a covariance has no inverse (a shrinkage above 0 gives it one).

    Source:
        Friedman, Regularized Discriminant Analysis, Journal of the American Statistical Association 84 (1989).
    """

    def __init__(
        self,
        statistics: Sequence[Statistics],
        shrinkage: float = 0.1,
        own_covariance: float = 0.0,
        within: NDArray[np.float64] | None = None,
    ) -> None:
        for name, share in (("shrinkage", shrinkage), ("own_covariance", own_covariance)):
            if not 0 <= share <= 1:
                raise ConfigError(
                    f"{name} = {share}: must be from 0 to 1",
                    hint=f"for example --set {name}=0.1",
                    unchanged="nothing was changed",
                )
        few = len(statistics) <= _FEW_TASKS
        means: list[NDArray[np.float32]] = []
        triangles: list[NDArray[np.float32]] = []
        counts: list[int] = []
        traces: list[float] = []
        scatter = np.zeros((1, 1))
        for one in statistics:
            if within is None:
                scatter = scatter + one.scatter
            means.append(one.mean)
            counts.append(one.n)
            traces.append(one.trace)
            if own_covariance and (few or len(statistics) * one.mean.size**2 * 2 <= _TRIANGLE_BYTES):
                triangles.append(one.triangle)
        self._means = np.stack(means).astype(np.float64)
        self._within = scatter / sum(counts) if within is None else within
        self._shrinkage, self._own = shrinkage, own_covariance
        if own_covariance == 0:
            self._linear(_shrunk(self._within, shrinkage), invertible=shrinkage > 0)
            return
        self._statistics, self._triangles = statistics, triangles
        self._counts, self._traces = counts, traces
        self._covariances = Covariances(self._triangle, counts, self._within, shrinkage, own_covariance)
        self._covariances.keeps_factors = few
        self._shortlist: Shortlist | None = None
        self._asked = 0

    @property
    def tasks(self) -> int:
        """T."""
        return len(self._means)

    def scatter(self, task: int) -> Scatter:
        """n_t S_t, read or held."""
        if self._triangles:
            return Triangle(self._triangles[task], self._means.shape[1])
        return self._statistics[task]

    def _triangle(self, task: int) -> NDArray[np.float32]:
        return self._triangles[task] if self._triangles else self._statistics[task].triangle

    def _hold(self) -> None:
        """Have all triangles in memory from now on, where each would be read again."""
        if not self._triangles and isinstance(self._statistics, StoredStatistics):
            self._triangles = [one.triangle for one in self._statistics]

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
                scores[start : start + step, t] = self.score(t, rows[start : start + step])
        return scores

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the likeliest task and its margin, in log-odds."""
        return rank(likely_scores([self], [np.asarray(features, np.float64)]))

    def shortlist(self, count: int) -> Shortlist | None:
        """Bounds for so many texts more, made when scoring every task for all so far would have cost as much."""
        if self._own == 0 or len(self._means) <= _FEW_TASKS:
            return None
        again = self._asked > 0
        self._asked += _FACTORS + count
        if again or self._asked > _BOUNDS:
            self._hold()
        if self._asked > _BOUNDS and not self._covariances.keeps_factors:
            self._covariances.keeps_factors = True
            shared = self._covariances.shared(self._traces)
            if shared is not None:
                of = self._covariances
                each = ((of.whole(t), of.factor(t).half) for t in range(len(self._means)))
                self._shortlist = Shortlist(shared, each, self._means)
        return self._shortlist

    def screening(self, rows: NDArray[np.float64]) -> Screening | None:
        """Bounds for a few texts whose tasks are not factored yet; None where they do not pay."""
        few = 0 < len(rows) <= _FEW_TEXTS
        if self._own == 0 or self._shrinkage == 0 or not few or self._covariances.keeps_factors:
            return None
        of_tasks = self._means, self._counts, self._traces
        return Screening(rows, *of_tasks, self._within, self._spectrum, self._shrinkage, self._own)

    @cached_property
    def _spectrum(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values, vectors = np.linalg.eigh(self._within)
        return values, vectors

    def score(self, task: int, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, d] features to [n] scores of one task."""
        factor = self._covariances.factor(task)
        white = factor.whiten(rows - self._means[task])
        return np.asarray(-0.5 * np.einsum("dn,dn->n", white, white) - factor.half)


def _shrunk(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """Drawn towards a multiple of the identity; the identity where nothing varies (the nearest mean then wins)."""
    identity = np.eye(len(covariance))
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(identity) * identity
    return shrunk if shrunk.any() else identity
