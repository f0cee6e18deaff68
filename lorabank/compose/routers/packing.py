"""Symmetric matrices in half the bytes of float32.

A matrix S without negative eigenvalues is stored as the roots r of its diagonal in float32, and S_ij / (r_i r_j),
which lies in [-1, 1], as a whole number of 16 bits. The error of an entry is at most 1.6e-5 r_i r_j.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.gaussians.covariances import Triangle, packed, unpacked
from lorabank.compose.routers.statistics import Floats

_STEPS = np.iinfo(np.int16).max


def compressed(matrix: Floats) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """A symmetric matrix [d, d] without negative eigenvalues as roots [d] and shares [d (d + 1) / 2]."""
    roots = np.sqrt(np.asarray(matrix.diagonal(), np.float64).clip(min=0)).astype(np.float32)
    scale = np.outer(roots, roots).astype(np.float64)
    shares = np.divide(matrix, scale, out=np.zeros(matrix.shape), where=scale > 0)
    return roots, np.rint(packed(shares).clip(-1, 1) * _STEPS).astype(np.int16)


def expanded(roots: NDArray[np.float32], shares: NDArray[np.int16]) -> NDArray[np.float32]:
    """The matrix [d, d] of `compressed`, up to its rounding."""
    return unpacked(triangle(roots, shares), len(roots))


def triangle(roots: NDArray[np.float32], shares: NDArray[np.int16]) -> NDArray[np.float32]:
    """The lower triangle of `expanded`, packed by `lorabank.compose.routers.gaussians.covariances`."""
    rows, columns = _places(len(roots))
    scaled = roots / np.float32(_STEPS)
    numbers = shares.astype(np.float32)
    numbers *= scaled.take(rows, mode="clip")
    numbers *= roots.take(columns, mode="clip")
    return numbers


def scaled_forms(
    roots: NDArray[np.float32], shares: NDArray[np.int16], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """v^T M v of each row v of [n, d], with the matrix M of `compressed`, which is not made."""
    scaled = directions * (roots / np.float32(math.sqrt(_STEPS)))
    return Triangle(shares.astype(np.float32), len(roots)).forms(scaled)


@lru_cache(maxsize=4)
def _places(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of each number of a packed triangle."""
    row = np.repeat(np.arange(d, dtype=np.float64)[:, None], d, 1)
    return packed(row).astype(np.intp), packed(row.T.copy()).astype(np.intp)
