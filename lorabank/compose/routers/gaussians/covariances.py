"""Regularised covariances of many tasks, of which at most triangles are held; factors are made when they are needed.

A triangle is stored as a rectangle ("rectangular full packed"; Gustavson et al., ACM TOMS 37(2), 2010), which LAPACK
factors and solves at the speed of whole matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import ConfigError

_FACTOR_BYTES = 5 << 27  # factors that are kept, at most: those of 1,000 tasks of width 384
_SINGULAR = 1e-9  # of the largest eigenvalue


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """L of ``D = L L^T``, packed, and half of ``log det D``."""

    packed: NDArray[np.float64]
    half: float

    def whiten(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n, d] to ``L^-1`` of each row, [d, n]."""
        from scipy.linalg.lapack import dtfsm

        white: NDArray[np.float64] = dtfsm(1.0, self.packed, rows.T, uplo="L")
        return white


class Covariances:
    """``D_t = (1 - l) C_t + l tr(C_t)/d I`` with ``C_t = (1 - b) S_w + b S_t``; the identity where nothing varies.

    Args:
        scatters: Task to its ``n_t S_t``, packed by `packed`.
        rows: n_t.
        within: float64 [d, d], S_w.
        shrinkage: l.
        own: b.

    Attributes:
        keeps_factors: Whether a factor that was made stays, up to 640 MiB of them.

    Raises:
        ConfigError: A covariance has no inverse, which is possible where l is 0 only, and then checked at once.
    """

    def __init__(
        self,
        scatters: Callable[[int], NDArray[np.float32]],
        rows: Sequence[int],
        within: NDArray[np.float64],
        shrinkage: float,
        own: float,
    ) -> None:
        self._scatters, self._rows = scatters, rows
        self._shrinkage, self._own = shrinkage, own
        self._d = len(within)
        self._within = packed(within)
        self._diagonal = np.flatnonzero(packed(np.eye(self._d)))
        self._factors: dict[int, Factor] = {}
        self.keeps_factors = False
        if shrinkage == 0:
            for t in range(len(rows)):
                self.factor(t)

    def factor(self, task: int) -> Factor:
        """The factor of one task."""
        from scipy.linalg.lapack import dpftrf

        if task in self._factors:
            return self._factors[task]
        found, lacking = dpftrf(self._d, self._packed(task), uplo="L", overwrite_a=1)
        if lacking:
            raise ConfigError(
                f"shrinkage = {self._shrinkage}: the covariance of task {task + 1} has no inverse",
                hint="use a larger value: --set shrinkage=0.1",
                unchanged="nothing was changed",
            )
        factor = Factor(found, float(np.log(found[self._diagonal]).sum()))
        if self.keeps_factors and (len(self._factors) + 1) * found.nbytes <= _FACTOR_BYTES:
            self._factors[task] = factor
        return factor

    def whole(self, task: int) -> NDArray[np.float64]:
        """D_t, [d, d]."""
        return unpacked(self._packed(task), self._d)

    def shared(self, traces: Sequence[float]) -> NDArray[np.float64] | None:
        """What lies below every D_t, up to rounding; None where it has no inverse.

        It is ``(1 - l)(1 - b) S_w + l min_t tr(C_t)/d I``.

        Args:
            traces: Of each task's scatter n_t S_t.
        """
        least = (1 - self._shrinkage) * (1 - self._own) * self._within
        spread = (1 - self._own) * self._within[self._diagonal].mean()
        smallest = min(trace / rows for trace, rows in zip(traces, self._rows, strict=True)) / self._d
        least[self._diagonal] += self._shrinkage * (spread + self._own * smallest)
        whole = unpacked(least, self._d)
        values = np.linalg.eigvalsh(whole)
        return whole if values[0] > _SINGULAR * values[-1] else None

    def _mixed(self, task: int) -> NDArray[np.float64]:
        """C_t, packed."""
        return (1 - self._own) * self._within + self._own * self._scatters(task) / self._rows[task]

    def _packed(self, task: int) -> NDArray[np.float64]:
        mixed = self._mixed(task)
        shift = self._shrinkage * mixed[self._diagonal].mean()
        mixed *= 1 - self._shrinkage
        mixed[self._diagonal] += shift
        if not mixed.any():
            mixed[self._diagonal] = 1.0
        return mixed


class Scatter(Protocol):
    """What bounds ask of a symmetric matrix M [d, d] without negative eigenvalues, however it is held."""

    @property
    def scatter(self) -> NDArray[np.float32]:
        """M itself, float32 [d, d]."""
        ...

    @property
    def roots(self) -> NDArray[np.floating[Any]]:
        """[d], roots of the diagonal: two of them bound a number beside it."""
        ...

    def forms(self, directions: NDArray[np.float32]) -> NDArray[np.float32]:
        """v^T M v of each row v of [n, d], in float32."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Triangle:
    """A `Scatter` of which only the lower triangle is held.

    Attributes:
        numbers: float32 [d (d + 1) / 2], as `packed` gives it.
        d: The width.
    """

    numbers: NDArray[np.float32]
    d: int

    @property
    def scatter(self) -> NDArray[np.float32]:
        """[d, d], unpacked each time."""
        return unpacked(self.numbers, self.d)

    @property
    def roots(self) -> NDArray[np.float32]:
        """[d]."""
        return np.asarray(np.sqrt(self.numbers[_diagonal(self.d)].clip(min=0)))

    def forms(self, directions: NDArray[np.float32]) -> NDArray[np.float32]:
        """v^T M v of each row v of float32 [n, d], float32 [n], in half the time that unpacking the matrix takes."""
        from scipy.linalg.blas import sspmv
        from scipy.linalg.lapack import stfttp

        columns = stfttp(self.d, self.numbers, uplo="L")[0]
        through = np.stack([sspmv(self.d, 1.0, columns, direction, lower=1) for direction in directions])
        return np.asarray(np.einsum("ij,ij->i", through, directions), np.float32)


def packed(matrix: NDArray[Any]) -> NDArray[Any]:
    """The lower triangle of a symmetric float32 or float64 [d, d], as a rectangle in [d (d + 1) / 2]."""
    from scipy.linalg.lapack import dtrttf, strttf

    pack = strttf if matrix.dtype == np.float32 else dtrttf
    triangle: NDArray[Any] = pack(matrix, uplo="L")[0]
    return triangle


def unpacked(triangle: NDArray[Any], d: int) -> NDArray[Any]:
    """The whole matrix [d, d] of `packed`."""
    whole: NDArray[Any] = triangle.take(_numbers(d), mode="clip")
    return whole


@lru_cache(maxsize=4)
def _numbers(d: int) -> NDArray[np.intp]:
    """Which number of a packed triangle stands where in the whole matrix, [d, d]."""
    from scipy.linalg.lapack import dtfttr

    lower = np.tril(dtfttr(d, np.arange(d * (d + 1) // 2, dtype=np.float64), uplo="L")[0]).astype(np.intp)
    return np.asarray(lower + np.tril(lower, -1).T, np.intp)


@lru_cache(maxsize=4)
def _diagonal(d: int) -> NDArray[np.intp]:
    """Which numbers of a packed triangle are the diagonal, from the first row to the last, [d]."""
    return np.asarray(_numbers(d).diagonal())
