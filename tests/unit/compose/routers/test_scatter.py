"""Forms of scatters that are held as triangles or in 16 bits, against dense products in float64."""

from __future__ import annotations

import numpy as np
import pytest

from lorabank.compose.routers.evidence import PackedStatistics
from lorabank.compose.routers.gaussians.covariances import Scatter, Triangle, packed
from lorabank.compose.routers.packing import compressed
from lorabank.compose.routers.statistics import TaskStatistics

EPS = float(np.finfo(np.float32).eps)


def held(d: int) -> list[Scatter]:
    """One scatter in all ways in which it may be held."""
    root = np.random.default_rng(d).normal(size=(d, 2 * d)) * np.geomspace(1e-2, 1e3, d)[:, None]
    scatter = (root @ root.T).astype(np.float32)
    centroids, mean = np.zeros((1, d), np.float32), np.zeros(d, np.float32)
    return [
        TaskStatistics(centroids, mean, scatter, 9),
        Triangle(packed(scatter), d),
        PackedStatistics(centroids, mean, *compressed(scatter), 9),
    ]


@pytest.mark.parametrize("d", [1, 2, 9, 10, 33])
def test_forms_are_those_of_the_whole_matrix(d: int) -> None:
    directions = np.random.default_rng(0).normal(size=(3, d)).astype(np.float32)
    for one in held(d):
        whole = one.scatter.astype(np.float64)
        wanted = np.einsum("ni,ij,nj->n", directions.astype(np.float64), whole, directions.astype(np.float64))
        room = 2 * (d + 4) * EPS * (np.abs(directions) @ one.roots.astype(np.float64)) ** 2  # as the bounds grant it
        assert (np.abs(one.forms(directions) - wanted) <= room).all()
        np.testing.assert_allclose(one.roots, np.sqrt(whole.diagonal()), rtol=1e-6)


def test_nothing_that_varies() -> None:
    for one in (
        Triangle(np.zeros(6, np.float32), 3),
        PackedStatistics(*[np.zeros((1, 3), np.float32)] * 2, *compressed(np.zeros((3, 3))), 9),
    ):
        assert not one.forms(np.ones((2, 3), np.float32)).any()
        assert not one.roots.any()
