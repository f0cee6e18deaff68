"""``layered``: Gaussians on features of two lower layers, and naive Bayes on the characters of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import Kept, RouterMethod
from lorabank.compose.routers.evidence import Evidence
from lorabank.compose.routers.gaussian import GaussianRouter
from lorabank.compose.routers.gaussians.covariances import unpacked
from lorabank.compose.routers.gaussians.likely import likely_scores
from lorabank.compose.routers.grams import NaiveBayes
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import Ranked, rank, softmax
from lorabank.compose.routers.statistics import Statistics
from lorabank.core.settings import setting

_FEW_ROWS_SHRINKAGE = 0.3
_COUNTS = 5.0
"""Temperatures below the best score within which a task is part of the posterior among many: e^-5 of the best."""


@dataclass(frozen=True)
class Layered(RouterMethod):
    """Regularised Gaussians at a third and two thirds of the depth, and n-grams of characters."""

    paper = "Friedman, JASA 84 (1989), on lower layers, with naive Bayes on character n-grams"
    calibrates = True
    usual_temperature = 5.0

    shrinkage: float = setting(0.1, "Shrinkage of the covariances towards a multiple of the identity.", gt=0, le=1)
    own_covariance: float = setting(0.1, "Share of a task's own covariance; 0: one for all.", ge=0, le=1)
    gram_weight: float = setting(3.0, "Weight of the characters beside the features.", ge=0)
    gram_prior: float = setting(0.1, "Weight of the pooled counts in those of each task.", gt=0)
    temperature: float = setting(0.0, "What scores are divided by to be log-odds; 0: fitted on the kept rows.", ge=0)

    @property
    def reads(self) -> type[Kept]:
        """Lower layers and characters."""
        return Evidence

    def router(self, statistics: Sequence[Evidence]) -> LayeredRouter:
        """The router over some tasks."""
        return LayeredRouter(statistics, self)

    def from_samples(self, samples: Query, layers: Sequence[int], clusters: int, seed: int) -> Evidence:
        """All that is kept of new tasks."""
        return Evidence.fit(samples, layers, clusters, seed)

    def fitted(self, found: Mapping[str, Any]) -> Self:
        """With the temperature; covariances of few rows are shrunk more."""
        least = _FEW_ROWS_SHRINKAGE if found.get("from_samples") else 0.0
        temperature = self.temperature or found.get("temperature", self.usual_temperature)
        return replace(self, shrinkage=max(self.shrinkage, least), temperature=temperature)

    def identity(self) -> list[float]:
        """All but the temperature, which changes no route."""
        return [self.shrinkage, self.own_covariance, self.gram_weight, self.gram_prior]


class LayeredRouter:
    """The sum of log densities of several layers and of the characters.

        score_t(x) = sum_l g_{t,l}(x) + w h_t(x),   p(t | x) = softmax(score / temperature)

    with g_{t,l} of `lorabank.compose.routers.gaussian` on layer l and h_t of `lorabank.compose.routers.grams`. All of
    it is a function of sums over each task's rows, so no order of the tasks matters.

    Args:
        statistics: Of each task, in the order of the sequence.
        method: The settings.
    """

    def __init__(self, statistics: Sequence[Evidence], method: Layered) -> None:
        tasks = list(statistics)
        self._layers = tuple(tasks[0].layers)
        self._gaussians = [_gaussian([task.layers[layer] for task in tasks], method) for layer in self._layers]
        self._characters = NaiveBayes([task.grams for task in tasks], method.gram_prior, method.gram_weight)
        self._temperature = method.temperature or method.usual_temperature

    def scores(self, query: Query) -> NDArray[np.float64]:
        """Every score, [n, T]."""
        rows = self._rows(query)
        known = self._characters.of(query.texts).every
        for layer, own in zip(self._gaussians, rows, strict=True):
            known = known + layer.scores(own)
        return known

    def rank(self, query: Query) -> Ranked:
        """The likeliest task, its margin in the scores' unit, and the posterior."""
        known = self._characters.of(query.texts)
        scores = likely_scores(self._gaussians, self._rows(query), known, _COUNTS * self._temperature)
        return replace(rank(scores), posterior=softmax(scores / self._temperature))

    def _rows(self, query: Query) -> list[NDArray[np.float64]]:
        return [np.asarray(rows, np.float64) for rows in query.features(self._layers)]


def _gaussian(statistics: Sequence[Statistics], method: Layered) -> GaussianRouter:
    """A router by one layer, whose pooled covariance is summed as triangles."""
    d = len(statistics[0].mean)
    total = np.zeros(d * (d + 1) // 2)
    for one in statistics:
        total += one.triangle
    within = unpacked(total, d) / sum(one.n for one in statistics)
    return GaussianRouter(statistics, method.shrinkage, method.own_covariance, within)
