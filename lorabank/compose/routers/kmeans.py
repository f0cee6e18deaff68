"""``kmeans``: the task of the nearest centroid (CoLoR, arXiv 2311.17601)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import RouterMethod
from lorabank.compose.routers.nearest import NearestPrototypes
from lorabank.compose.routers.ranking import Ranked
from lorabank.compose.routers.statistics import Floats, TaskStatistics
from lorabank.core.settings import setting


@dataclass(frozen=True)
class KMeans(RouterMethod):
    """The nearest of each task's k-means centroids."""

    paper = "CoLoR, arXiv 2311.17601"

    clusters_per_task: int = setting(5, "Centroids of each task.", ge=1, le=1024)

    def build(self, statistics: Iterable[TaskStatistics]) -> KMeansRouter:
        """The router over some tasks."""
        return KMeansRouter(statistics)

    def refitted(self, clusters: int, again: Callable[[int], TaskStatistics]) -> TaskStatistics | None:
        """Other statistics where another number of centroids is wanted."""
        return None if clusters == self.clusters_per_task else again(self.clusters_per_task)


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
