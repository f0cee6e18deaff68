"""What layered routing keeps of a task: statistics of lower layers' features, and counts of the texts' characters.

All of it is sums over rows. So it is exactly incremental, the order of the tasks does not matter, and some of the rows
can be taken out again, as if they had never been among the task's: by this a temperature is fitted on rows that the
router does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.grams import Grams, of_texts
from lorabank.compose.routers.packing import compressed, expanded, scaled_forms, triangle
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.statistics import Floats, Statistics, TaskStatistics, fit_statistics
from lorabank.core.errors import DamagedError

_TENSORS = ("centroids", "mean", "roots", "shares")


@dataclass(frozen=True, slots=True, eq=False)
class PackedStatistics:
    """Statistics of a layer as they are stored.

    Attributes:
        centroids: float32 [k, d].
        mean: float32 [d].
        roots: float32 [d], of the scatter's diagonal.
        shares: int16 [d (d + 1) / 2], its lower triangle in units of the roots' products.
        n: Number of rows.
    """

    centroids: NDArray[np.float32]
    mean: NDArray[np.float32]
    roots: NDArray[np.float32]
    shares: NDArray[np.int16]
    n: int

    @property
    def scatter(self) -> NDArray[np.float32]:
        """The scatter [d, d], unpacked each time."""
        return expanded(self.roots, self.shares)

    @property
    def trace(self) -> float:
        """Of the scatter."""
        return float(np.square(self.roots, dtype=np.float64).sum())

    @property
    def triangle(self) -> NDArray[np.float32]:
        """The scatter's lower triangle, unpacked each time."""
        return triangle(self.roots, self.shares)

    def forms(self, directions: NDArray[np.float32]) -> NDArray[np.float32]:
        """v^T S v of each row v of [n, d] with the scatter S, in float32; S is not unpacked."""
        return scaled_forms(self.roots, self.shares, directions)

    def checked(self) -> PackedStatistics:
        """The same, whose shapes fit and whose numbers are finite.

        Raises:
            ValueError: They are not.
        """
        (d,) = self.mean.shape
        shapes = [a.shape for a in (self.centroids, self.roots, self.shares)]
        finite = all(np.isfinite(a).all() for a in (self.centroids, self.mean, self.roots))
        if shapes != [(len(self.centroids), d), (d,), (d * (d + 1) // 2,)] or not finite or not shapes[0][0]:
            raise ValueError(f"shapes {shapes} of {d} features, or values that are not finite")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What routing keeps of a task beside the statistics of its last hidden state.

    Attributes:
        layers: Number of a layer to the statistics of its features.
        grams: Counts of the character n-grams of the rows' texts.
        n: Number of rows.
    """

    role: ClassVar[str] = "routing"

    layers: Mapping[int, Statistics]
    grams: Grams
    n: int

    @classmethod
    def fit(cls, rows: Query, layers: Sequence[int], clusters: int, seed: int) -> Evidence:
        """Of a task's rows, from one pass."""
        features = rows.features(layers)
        every = {layer: fit_statistics(one, clusters, seed) for layer, one in zip(layers, features, strict=True)}
        return cls(every, of_texts(rows.texts), len(rows))

    def without(self, rows: Query) -> Evidence:
        """What it would be without some of its rows, with the centroids of all; one other row at least stays.

        Source:
            Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
        """
        features = dict(zip(self.layers, rows.features(tuple(self.layers)), strict=True))
        left = {layer: _without(one, features[layer]) for layer, one in self.layers.items()}
        return Evidence(left, self.grams.minus(of_texts(rows.texts)), self.n - len(rows))

    def to_bytes(self) -> bytes:
        """As safetensors; the same evidence gives the same bytes."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {
            "n": np.array([self.n]),
            "grams.buckets": self.grams.buckets,
            "grams.counts": self.grams.counts.astype(np.float32),
        }
        for layer, one in self.layers.items():
            each = (one.centroids, one.mean, *compressed(one.scatter))
            named = zip(_TENSORS, each, strict=True)
            tensors |= {f"{layer}.{name}": np.ascontiguousarray(tensor) for name, tensor in named}
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """Read what ``to_bytes`` wrote.

        Raises:
            DamagedError: It holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            n = int(tensors["n"][0])
            grams = Grams(tensors["grams.buckets"], tensors["grams.counts"].astype(np.float64))
            layers = {
                layer: PackedStatistics(**{name: tensors[f"{layer}.{name}"] for name in _TENSORS}, n=n).checked()
                for layer in sorted(int(name.partition(".")[0]) for name in tensors if name.endswith(".mean"))
            }
        except (SafetensorError, LookupError, ValueError) as error:
            raise DamagedError(f"routing statistics cannot be read: {error!r}") from error
        if n < 1 or not layers or len(grams.buckets) != len(grams.counts):
            raise DamagedError("routing statistics lack layers or counts")
        return cls(layers, grams, n)


def _without(statistics: Statistics, features: Floats) -> TaskStatistics:
    rows, mean = np.asarray(features, np.float64), statistics.mean.astype(np.float64)
    n, gone = statistics.n, len(features)
    left = (n * mean - rows.sum(0)) / (n - gone)
    centre = rows.mean(0)
    scatter = statistics.scatter.astype(np.float64) - (rows - centre).T @ (rows - centre)
    scatter -= gone * (n - gone) / n * np.outer(centre - left, centre - left)
    return TaskStatistics(statistics.centroids, left.astype(np.float32), scatter.astype(np.float32), n - gone)
