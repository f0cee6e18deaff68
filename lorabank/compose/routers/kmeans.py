"""``kmeans``: the task of the nearest centroid (CoLoR, arXiv 2311.17601)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import Kept, LayerMethod
from lorabank.compose.routers.nearest import NearestPrototypes
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import Ranked
from lorabank.compose.routers.statistics import Floats, TaskStatistics
from lorabank.core.settings import setting


@dataclass(frozen=True)
class KMeans(LayerMethod):
    """The nearest of each task's k-means centroids."""

    paper = "CoLoR, arXiv 2311.17601"

    clusters_per_task: int = setting(5, "Centroids of each task.", ge=1, le=1024)

    def build(self, statistics: Iterable[TaskStatistics]) -> KMeansRouter:
        """The router over some tasks."""
        return KMeansRouter(statistics)

    def lacks(self, clusters: int, read: Callable[[], Any]) -> str:
        """Another number of centroids may be wanted."""
        other = f"{clusters} centroids and not {self.clusters_per_task}" if clusters != self.clusters_per_task else ""
        return other or super().lacks(clusters, read)

    def from_samples(self, samples: Query, layers: Sequence[int], clusters: int, seed: int) -> Kept:
        """With the number of centroids that is wanted."""
        return super().from_samples(samples, layers, self.clusters_per_task, seed)

    def identity(self) -> Any:
        """The layer, where it is not the last; the centroids are part of the statistics."""
        return self.layer or None


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
