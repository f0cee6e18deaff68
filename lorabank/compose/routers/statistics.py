"""What routing keeps of a task: statistics of its training features.

So a new task needs no row of an old one, and the router of stage t is made of the first t statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.centroids import kmeans
from lorabank.compose.routers.gaussians.covariances import Scatter, packed
from lorabank.core.errors import DamagedError

Floats = NDArray[np.floating[Any]]
T = TypeVar("T")

MOST_ROWS = 1000
"""Of a task's training rows, the maximum that its statistics are made of: a seeded sample in which each label keeps
its share. A row costs a pass through the base, nearly half of what one epoch of training on it costs."""


class Statistics(Scatter, Protocol):
    """What `TaskStatistics` has, however it is held."""

    @property
    def centroids(self) -> NDArray[np.float32]:
        """float32 [k, d]."""
        ...

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32 [d]."""
        ...

    @property
    def trace(self) -> float:
        """Of the scatter."""
        ...

    @property
    def triangle(self) -> NDArray[np.float32]:
        """The scatter's lower triangle, packed by `lorabank.compose.routers.gaussians.covariances`."""
        ...

    @property
    def n(self) -> int:
        """Number of rows."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TaskStatistics:
    """What routing keeps of a task's n training features of width d.

    Attributes:
        centroids: float32 [k, d], k-means centroids.
        mean: float32 [d].
        scatter: float32 [d, d], sum over rows of (x - mean)(x - mean)^T.
        n: Number of rows.
    """

    role: ClassVar[str] = ""

    centroids: NDArray[np.float32]
    mean: NDArray[np.float32]
    scatter: NDArray[np.float32]
    n: int

    @property
    def trace(self) -> float:
        """Of the scatter."""
        return float(self.scatter.diagonal().sum(dtype=np.float64))

    @property
    def triangle(self) -> NDArray[np.float32]:
        """The scatter's lower triangle, packed."""
        return packed(self.scatter)

    @property
    def roots(self) -> NDArray[np.float32]:
        """Of the scatter's diagonal, [d]."""
        return np.asarray(np.sqrt(self.scatter.diagonal().clip(min=0)))

    def forms(self, directions: NDArray[np.float32]) -> NDArray[np.float32]:
        """v^T S v of each row v of [n, d] with the scatter S, in float32."""
        return np.asarray(np.einsum("ij,ij->i", directions @ self.scatter, directions))

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
        return found.checked()

    def checked(self) -> TaskStatistics:
        """The same, whose shapes fit and whose numbers are finite.

        Raises:
            DamagedError: They are not.
        """
        d = self.mean.shape[-1]
        arrays = (self.centroids, self.mean, self.scatter)
        shapes = [a.shape for a in arrays] == [(len(self.centroids), d), (d,), (d, d)]
        if not shapes or self.n < 1 or not len(self.centroids) or not all(np.isfinite(a).all() for a in arrays):
            raise DamagedError("routing statistics have wrong shapes or values that are not finite")
        return self


class StoredStatistics(Sequence[T]):
    """Statistics of several tasks, each read whenever it is looked at: those of 1,000 tasks may take 600 MB.

    Args:
        reads: Of each task, gives its statistics.
    """

    def __init__(self, reads: Sequence[Callable[[], T]]) -> None:
        self._reads = reads

    def __len__(self) -> int:
        return len(self._reads)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> StoredStatistics[T]: ...

    def __getitem__(self, index: int | slice) -> T | StoredStatistics[T]:
        return StoredStatistics(self._reads[index]) if isinstance(index, slice) else self._reads[index]()


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
        centroids = kmeans(rows, min(clusters, len(np.unique(rows, axis=0))), seed)
    return TaskStatistics(centroids.astype(np.float32), mean.astype(np.float32), scatter.astype(np.float32), len(rows))
