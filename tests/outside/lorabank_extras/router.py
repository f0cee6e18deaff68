"""A router: the nearest of the tasks' means, of which small differences were taken away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from lorabank.compose.routers.base import FeatureRouter, LayerMethod
from lorabank.compose.routers.kmeans import KMeansRouter
from lorabank.compose.routers.statistics import TaskStatistics
from lorabank.core.settings import setting


@dataclass(frozen=True)
class Shrunken(LayerMethod):
    """The nearest shrunken centroid."""

    paper = "Tibshirani et al., PNAS 99 (2002)"

    threshold: float = setting(0.0, "What is taken from each coordinate's distance to the mean of all.", ge=0)

    def build(self, statistics: Iterable[TaskStatistics]) -> FeatureRouter:
        """The router over some tasks."""
        tasks = list(statistics)
        means = np.stack([task.mean for task in tasks])
        apart = means - means.mean(0)
        shrunken = means.mean(0) + np.sign(apart) * np.maximum(np.abs(apart) - self.threshold, 0)
        nearest = [replace(task, centroids=mean[None]) for task, mean in zip(tasks, shrunken, strict=True)]
        return KMeansRouter(nearest)

    def identity(self) -> list[float]:
        """The threshold and the layer."""
        return [self.threshold, self.layer]
