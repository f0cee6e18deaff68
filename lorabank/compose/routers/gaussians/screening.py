r"""Which of many Gaussians can be the likeliest of a few texts, found without a factor of each.

Upper bounds on a score rest on lower ones on its form z^T D_t^-1 z, z = x - m_t, and on log det D_t. By Cauchy and
Schwarz, for every v,

    z^T D_t^-1 z  >=  (z^T v)^2 / (v^T D_t v),

with equality at v = D_t^-1 z. The covariance that all tasks would share is mostly D_t: with v = C^-1 z for
C = (1 - l) S_w + l tr(S_w)/d I a task takes one product with S_t, in float32 and from the stored triangle; its
rounding is bounded and added. Where that does not rule it out, two steps of conjugate gradients, preconditioned by C,
come close to the best v: four products with matrices [d, d], where a factor takes d / 6. And

    D_t  >=  (1 - l)(1 - b) S_w + l tr(C_t)/d I,

whose determinant the eigenvalues of S_w give for all tasks at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.gaussians.covariances import Scatter

Matrix = NDArray[np.float64]

_STEPS = 2
_EPS = float(np.finfo(np.float32).eps)
_ROUNDED = 2 * _EPS  # of a number of b S_t, which is kept and scaled in float32


class Screening:
    """Bounds on the scores of T tasks for a few texts; see `lorabank.compose.routers.gaussian`.

    Args:
        texts: [n, d], features.
        means: [T, d], m_t.
        rows: n_t.
        traces: Of each task's scatter n_t S_t.
        within: [d, d], S_w.
        spectrum: Its eigenvalues and eigenvectors, as `numpy.linalg.eigh` gives them.
        shrinkage: l, above 0.
        own: b.

    Source:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems (1952).
    """

    def __init__(
        self,
        texts: Matrix,
        means: Matrix,
        rows: Sequence[int],
        traces: Sequence[float],
        within: Matrix,
        spectrum: tuple[Matrix, Matrix],
        shrinkage: float,
        own: float,
    ) -> None:
        d = len(within)
        values, vectors = spectrum[0].clip(min=0), spectrum[1]
        spread = float(values.mean())
        self._texts, self._means = texts, means
        self._shared = (1 - shrinkage) * (1 - own) * within
        self._own = (1 - shrinkage) * own / np.asarray(rows)
        self._ridge = shrinkage * ((1 - own) * spread + own * np.asarray(traces) / rows / d)
        common = (1 - shrinkage) * values + (shrinkage * spread or 1.0)
        self._nearly = (vectors / common) @ vectors.T
        error = d * np.finfo(np.float64).eps * values[-1]
        spared = self._ridge - error - _ROUNDED * self._own * traces
        shared = (1 - shrinkage) * (1 - own) * values
        least = shared + spared[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            halves = np.log(least).sum(1) / 2
        self._halves = np.where(least[:, 0] > 0, halves, -np.inf)

        self._far, self._alike = np.empty((2, len(texts), len(means)))  # z^T C^-1 z, and v^T D_t v without S_t
        self._directions = np.empty((len(texts), *means.shape), np.float32)
        for k, text in enumerate(texts):
            turned = (text - means) @ vectors
            whitened = turned / common
            self._far[k] = (turned * whitened).sum(1)
            self._alike[k] = (whitened**2 * (shared + self._ridge[:, None])).sum(1)
            self._directions[k] = whitened @ vectors.T

    @property
    def far(self) -> Matrix:
        """Of each text [n, T] how far the tasks lie, by the covariance that all would share."""
        return self._far

    def rough_bounds(self, task: int, scatter: Scatter) -> Matrix:
        """Numbers [n] that no score of a task lies above, by its scatter; infinite where nothing can be said."""
        directions, far = self._directions[:, task], self._far[:, task]
        part = scatter.forms(directions).astype(np.float64)
        part += 2 * (directions.shape[1] + 4) * _EPS * (np.abs(directions) @ scatter.roots.astype(np.float64)) ** 2
        return self._bounds(task, far, self._alike[:, task] + self._own[task] * part)

    def bounds(self, task: int, scatter: Scatter) -> Matrix:
        """The same, closer."""
        covariance = np.multiply(scatter.scatter, self._own[task], dtype=np.float64)
        covariance += self._shared
        covariance[np.diag_indices(len(covariance))] += self._ridge[task]
        apart = (self._texts - self._means[task]).T
        found, through = self._solved(apart, covariance)
        rounding = _ROUNDED * self._own[task] * (scatter.roots.astype(np.float64) @ np.abs(found)) ** 2
        return self._bounds(task, _dots(apart, found), _dots(found, through) + rounding)

    def _bounds(self, task: int, along: Matrix, length: Matrix) -> Matrix:
        """From z^T v and v^T D_t v."""
        with np.errstate(divide="ignore", invalid="ignore"):
            forms = np.nan_to_num(along**2 / length, posinf=0.0)
        return np.asarray(-forms / 2 - self._halves[task])

    def _solved(self, apart: Matrix, covariance: Matrix) -> tuple[Matrix, Matrix]:
        """About D_t^-1 z, and D_t times it, both [d, n]."""
        found, through, step = (np.zeros_like(apart) for _ in range(3))
        left, last = apart, np.full(apart.shape[1], np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for _ in range(_STEPS):
                better = self._nearly @ left
                now = _dots(left, better)
                step = better + np.nan_to_num(now / last) * step
                product = covariance @ step
                length = np.nan_to_num(now / _dots(step, product), posinf=0.0)
                found, through = found + length * step, through + length * product
                left, last = left - length * product, now
        return found, through


def _dots(left: Matrix, right: Matrix) -> Matrix:
    """The products of columns, [n]."""
    return np.asarray(np.einsum("dn,dn->n", left, right))
