"""``similarity``: the states of all tasks together, weighed by how near a text lies to each task's mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import LayerMethod
from lorabank.compose.routers.ranking import Ranked, rank, softmax
from lorabank.compose.routers.statistics import Floats, TaskStatistics
from lorabank.core.settings import setting


@dataclass(frozen=True)
class Similarity(LayerMethod):
    """A softmax of cosines to the tasks' mean features; the states of all tasks answer together."""

    paper = "Token-level Adaptation, arXiv 2311.10847"
    soft = True

    factor: float = setting(4.0, "What the largest cosine is multiplied by before the softmax.", ge=1)

    def build(self, statistics: Sequence[TaskStatistics]) -> SimilarityRouter:
        """The router over some tasks."""
        return SimilarityRouter([one.mean for one in statistics], self.factor)

    def identity(self) -> list[float]:
        """The factor and the layer."""
        return [self.factor, self.layer]


class SimilarityRouter:
    """``z_k = cos(x, m_k)``, the largest of them times a factor, and ``softmax(z)`` as weights.

    Args:
        means: float32 [d] of each task; the cosine with a mean of length 0 is 0.
        factor: Of the largest cosine.

    Source:
        Belofsky, Token-Level Adaptation of LoRA Adapters for Downstream Task Generalization (arXiv 2311.10847).
    """

    def __init__(self, means: Sequence[NDArray[np.float32]], factor: float) -> None:
        self._directions = _unit(np.stack(means).astype(np.float64))
        self._factor = factor

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] cosines."""
        return np.asarray(_unit(np.asarray(features, np.float64)) @ self._directions.T)

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the nearest task, its margin in cosines, and the weights of all tasks."""
        cosines = self.scores(features)
        ranked = rank(cosines)
        rows = np.arange(len(cosines))
        cosines[rows, ranked.task] *= self._factor
        return replace(ranked, posterior=softmax(cosines))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0))
