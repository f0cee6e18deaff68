r"""Upper bounds on the scores of many Gaussians, by which all but a few of them are left out.

Each covariance lies above one that all tasks share, D_t = D_0 + N_t with N_t >= 0. With D_0 = W^-1 W^-T,
y = W (x - m_t), the eigenvalues f_1 >= f_2 >= ... and eigenvectors u_j of W N_t W^T, and g_j = f_j / (1 + f_j),

    (x - m_t)^T D_t^-1 (x - m_t)  =  |y|^2 - sum_j g_j (u_j . y)^2
                                  >= (1 - g) |y|^2 - sum_{j <= k} (g_j - g) (u_j . y)^2,    g = g_{k+1}

(Woodbury; the directions behind the first k count as if each had the largest g_j among them). So k products of width d
bound the score of a task, where the score itself takes about d of them; with k = 96 of 384 the bounds rule out all but
a few of hundreds of tasks. All tasks take one product in float32, whose rounding is bounded and added.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

_DIRECTIONS = 96
_BLOCK = 1 << 20  # numbers of a block of products
_EPS = float(np.finfo(np.float32).eps)


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
        self._k = min(_DIRECTIONS, d // 2)
        centred = (means - self._centre) @ self._whiten
        self._means = centred.astype(np.float32)
        self._squares = (centred**2).sum(1)
        self._longest = float(np.sqrt(self._squares.max()))
        self._directions = np.empty((tasks, self._k, d + 1), np.float32)  # the last column: minus their part of m_t
        self._share, self._halves, self._rounding = np.empty(tasks), np.empty(tasks), np.empty(tasks)
        for t, (covariance, half) in enumerate(covariances):
            above = self._whiten.T @ (covariance - shared) @ self._whiten
            f, u = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(above.astype(np.float32))))
            f = f.astype(np.float64).clip(min=0)
            g = f / (1 + f)
            beyond = g[-self._k - 1]
            directions = u[:, -self._k :] * np.sqrt(g[-self._k :] - beyond)
            self._directions[t, :, :d] = directions.T
            self._directions[t, :, d] = -(centred[t] @ directions)
            self._share[t] = 1 - beyond
            self._halves[t] = half
            # Times |y|^2: what the products round, k of them at once, and the eigenvectors by the largest eigenvalue.
            self._rounding[t] = (d + 4) * _EPS * (np.sqrt(self._k) + 2 + f[-1])

    def bounds(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, d] features to [n, T] numbers that no score lies above."""
        tasks, k, d = self._directions.shape
        whole = (rows - self._centre) @ self._whiten
        y, squares = np.ones((len(rows), d), np.float32), (whole**2).sum(1)
        y[:, :-1] = whole
        found = self._share * (2 * (y[:, :-1] @ self._means.T) - self._squares - squares[:, None])
        several = max(1, _BLOCK // (k * max(1, len(rows))))
        for first in range(0, tasks, several):
            of = slice(first, first + several)
            along = (y @ self._directions[of].reshape(-1, d).T).reshape(len(y), -1, k)
            found[:, of] += np.einsum("ntk,ntk->nt", along, along)
        found /= 2
        found -= self._halves
        length = np.sqrt(squares) + self._longest
        return np.asarray(found + self._rounding * (length**2)[:, None])
