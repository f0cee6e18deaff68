r"""Upper bounds on the scores of many Gaussians, by which all but a few of them are left out.

Each covariance lies above one that all tasks share, D_t = D_0 + N_t with N_t >= 0. With D_0 = W^-1 W^-T,
y = W (x - m_t), the eigenvalues f_1 >= f_2 >= ... and eigenvectors u_j of W N_t W^T, and g_j = f_j / (1 + f_j),

    (x - m_t)^T D_t^-1 (x - m_t)  =  |y|^2 - sum_j g_j (u_j . y)^2
                                  >= (1 - g) |y|^2 - sum_{j <= k} (g_j - g) (u_j . y)^2,    g = g_{k+1}

(Woodbury; the directions behind the first k count as if each had the largest g_j among them). So k products of width d
bound the score of a task, where the score itself takes about d of them. With k = 8 of 384 all tasks of a text take one
small product, which rules out most of hundreds of tasks; with k = 96 all but a few of the others are. Products are in
float32. What they round is bounded and added.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

_DIRECTIONS = 96
_FEW_DIRECTIONS = 8
_BLOCK = 1 << 20  # numbers of a block of products
_EPS = float(np.finfo(np.float32).eps)


class Whitened(NamedTuple):
    """Texts as the bounds see them.

    Attributes:
        y: float32 [n, d + 1], their features, whitened, with a 1 behind them.
        squares: float64 [n], |y|^2 without the 1.
    """

    y: NDArray[np.float32]
    squares: NDArray[np.float64]

    def some(self, which: NDArray[np.intp]) -> Whitened:
        """A part of the texts."""
        return Whitened(self.y[which], self.squares[which])


class Shortlist:
    """Bounds for T tasks.

    Args:
        shared: float64 [d, d], D_0, which has an inverse.
        covariances: Of each task float64 [d, d], D_t, and half of log det D_t; gone through once.
        means: float64 [T, d], m_t.
    """

    def __init__(
        self,
        shared: NDArray[np.float64],
        covariances: Iterable[tuple[NDArray[np.float64], float]],
        means: NDArray[np.float64],
    ) -> None:
        tasks, d = means.shape
        values, vectors = np.linalg.eigh(shared)
        self._centre = means.mean(0)  # what all features have in common would cost digits
        self._whiten = vectors / np.sqrt(values)  # W^T
        centred = (means - self._centre) @ self._whiten
        self._means = centred.astype(np.float32)
        self._squares = (centred**2).sum(1)
        self._longest = float(np.sqrt(self._squares.max()))
        self._many = _Directions(tasks, min(_DIRECTIONS, d // 2), d)
        self._few = _Directions(tasks, min(_FEW_DIRECTIONS, d // 2), d)
        self._halves, self._rounding = np.empty(tasks), np.empty(tasks)
        for t, (covariance, half) in enumerate(covariances):
            above = self._whiten.T @ (covariance - shared) @ self._whiten
            f, u = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(above.astype(np.float32))))
            f = f.astype(np.float64).clip(min=0)
            self._many.put(t, f / (1 + f), u, centred[t])
            self._few.put(t, f / (1 + f), u, centred[t])
            self._halves[t] = half
            # Times |y|^2: what the products round, k of them at once, and the eigenvectors by the largest eigenvalue.
            self._rounding[t] = (d + 4) * _EPS * (np.sqrt(self._many.k) + 2 + f[-1])

    def rough_bounds(self, texts: Whitened) -> NDArray[np.float64]:
        """[n, T] numbers that no score of n texts lies above, from few directions."""
        return self._bounds(texts, self._few, slice(None))

    def bounds(self, texts: Whitened, task: int) -> NDArray[np.float64]:
        """[n] numbers that no score of one task lies above, from many directions."""
        return self._bounds(texts, self._many, slice(task, task + 1))[:, 0]

    def whitened(self, rows: NDArray[np.float64]) -> Whitened:
        """What the bounds need of features [n, d], computed once for all tasks."""
        whole = (rows - self._centre) @ self._whiten
        y = np.ones((len(rows), whole.shape[1] + 1), np.float32)
        y[:, :-1] = whole
        return Whitened(y, (whole**2).sum(1))

    def _bounds(self, texts: Whitened, directions: _Directions, of: slice) -> NDArray[np.float64]:
        y, squares = texts
        apart = 2 * (y[:, :-1] @ self._means[of].T) - self._squares[of] - squares[:, None]
        length = np.sqrt(squares) + self._longest
        found = (directions.share[of] * apart + directions.along(texts, of)) / 2 - self._halves[of]
        return np.asarray(found + self._rounding[of] * (length**2)[:, None])


class _Directions:
    """The k strongest directions of each of T tasks, by which the length of a part of y is taken back.

    Attributes:
        k: Their number.
        share: float64 [T], 1 - g_{k+1}.
    """

    def __init__(self, tasks: int, k: int, d: int) -> None:
        self.k = k
        self.share = np.empty(tasks)
        self._vectors = np.empty((tasks, k, d + 1), np.float32)  # the last column: minus their part of m_t

    def put(self, task: int, g: NDArray[np.float64], u: NDArray[np.float32], mean: NDArray[np.float64]) -> None:
        """The directions of a task from all of them, the strongest last."""
        beyond = g[-self.k - 1]
        directions = (u[:, -self.k :] * np.sqrt(g[-self.k :] - beyond)).T
        self.share[task] = 1 - beyond
        self._vectors[task, :, :-1] = directions
        self._vectors[task, :, -1] = -(directions @ mean)

    def along(self, texts: Whitened, of: slice) -> NDArray[np.float32]:
        """Of n texts [n, tasks] the sum_j (g_j - g_{k+1}) (u_j . (y - m_t))^2 of some tasks, in blocks."""
        chosen, (n, width) = self._vectors[of], texts.y.shape
        found = np.empty((n, len(chosen)), np.float32)
        several = max(1, _BLOCK // (self.k * max(n, width)))
        for first in range(0, len(chosen), several):
            block = chosen[first : first + several]
            parts = (texts.y @ block.reshape(-1, width).T).reshape(n, -1, self.k)
            found[:, first : first + several] = np.einsum("ntk,ntk->nt", parts, parts)
        return found
