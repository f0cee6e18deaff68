"""``ridge``: regression from random features to the task, from Gram matrices that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.base import Kept, RouterMethod
from lorabank.compose.routers.packing import compressed, expanded
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import Ranked, rank
from lorabank.compose.routers.statistics import Floats
from lorabank.core.errors import DamagedError
from lorabank.core.settings import setting

_WIDTH = 512
_SEED = 0  # of the projection, which all tasks of all banks share


@dataclass(frozen=True, slots=True, eq=False)
class RandomFeatures:
    """Sums over a task's random features ``phi = max(x R, 0)`` of one layer, with R [d, M] of standard normal numbers.

    Attributes:
        layer: Number of the layer.
        d: Width of its features.
        n: Number of rows.
        total: float32 [M], the sum of phi.
        roots: float32 [M], and
        shares: int16 [M (M + 1) / 2]: the sum of phi phi^T, see `lorabank.compose.routers.packing`.
    """

    role: ClassVar[str] = "routing random features"

    layer: int
    d: int
    n: int
    total: NDArray[np.float32]
    roots: NDArray[np.float32]
    shares: NDArray[np.int16]

    @classmethod
    def fit(cls, rows: Query, layer: int) -> RandomFeatures:
        """Of a task's rows."""
        (features,) = rows.features((layer,))
        phi = random_features(features)
        total = phi.sum(0).astype(np.float32)
        return cls(layer, features.shape[1], len(features), total, *compressed(phi.T @ phi))

    def to_bytes(self) -> bytes:
        """As safetensors; the same features give the same bytes."""
        from safetensors.numpy import save

        facts = np.array([self.layer, self.d, self.n])
        return save({"facts": facts, "total": self.total, "roots": self.roots, "shares": self.shares})

    @classmethod
    def from_bytes(cls, data: bytes) -> RandomFeatures:
        """Read what ``to_bytes`` wrote.

        Raises:
            DamagedError: It holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            layer, d, n = (int(fact) for fact in tensors["facts"])
            found = cls(layer, d, n, tensors["total"], tensors["roots"], tensors["shares"])
        except (SafetensorError, LookupError, ValueError) as error:
            raise DamagedError(f"random features cannot be read: {error!r}") from error
        m = len(found.total)
        fits = found.roots.shape == (m,) and found.shares.shape == (m * (m + 1) // 2,) and n > 0
        if not fits or not (np.isfinite(found.total).all() and np.isfinite(found.roots).all()):
            raise DamagedError("random features have wrong shapes or values that are not finite")
        return found


@dataclass(frozen=True)
class Ridge(RouterMethod):
    """Ridge regression on random features of the layer at two thirds of the depth."""

    paper = "RanPAC, arXiv 2307.02251"

    penalty: float = setting(0.01, "Ridge, in units of the mean of the Gram matrix's diagonal.", gt=0)

    @property
    def reads(self) -> type[Kept]:
        """Sums of random features."""
        return RandomFeatures

    def router(self, statistics: Sequence[RandomFeatures]) -> RidgeRouter:
        """The router over some tasks."""
        return RidgeRouter(statistics, self.penalty)

    def from_samples(self, samples: Query, layers: Sequence[int], clusters: int, seed: int) -> RandomFeatures:
        """Of the deepest layer that is kept for routing."""
        return RandomFeatures.fit(samples, layers[-1])

    def identity(self) -> float:
        """The penalty."""
        return self.penalty


class RidgeRouter:
    """``W = (sum_t G_t + l tr(G)/M I)^-1 [c_1 ... c_T]`` and ``score_t(x) = phi(x) . w_t``.

    G_t is the mean of phi phi^T over a task's rows and c_t that of phi: least squares from features to the indicator
    of the task, in which each task counts the same.

    Args:
        statistics: Of each task, in the order of the sequence; gone through once.
        penalty: l.

    Source:
        McDonnell et al., RanPAC: Random Projections and Pre-trained Models for Continual Learning (arXiv 2307.02251).
    """

    def __init__(self, statistics: Sequence[RandomFeatures], penalty: float) -> None:
        first, gram, means = statistics[0], np.zeros((1, 1)), []
        for one in statistics:
            gram = gram + expanded(one.roots, one.shares).astype(np.float64) / one.n
            means.append(one.total.astype(np.float64) / one.n)
        gram[np.diag_indices(len(gram))] += penalty * np.trace(gram) / len(gram) or 1.0
        self._layer = first.layer
        self._weights = np.linalg.solve(gram, np.stack(means, 1))

    def rank(self, query: Query) -> Ranked:
        """The task of the highest score, and its margin."""
        (features,) = query.features((self._layer,))
        return rank(random_features(features) @ self._weights)


def random_features(features: Floats) -> NDArray[np.float64]:
    """[n, d] features to phi, [n, M]."""
    return np.maximum(np.asarray(features, np.float64) @ _projection(features.shape[1]), 0)


@lru_cache(maxsize=4)
def _projection(d: int) -> NDArray[np.float64]:
    """R, [d, M]."""
    return np.random.RandomState(_SEED).standard_normal((d, _WIDTH))
