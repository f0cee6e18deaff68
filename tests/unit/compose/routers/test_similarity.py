"""Soft weights by cosines, against a sum written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorabank.compose.routers.similarity import Similarity
from lorabank.compose.routers.statistics import fit_statistics
from tests.unit.compose.routers.test_routers import random_tasks


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_the_largest_cosine_counts_so_often_and_a_softmax_weighs_all(factor: float) -> None:
    tasks, asked = random_tasks((20, 30, 25, 22)), random_tasks(seed=5)[0]
    found = Similarity(factor=factor).build([fit_statistics(rows, 2, 0) for rows in tasks]).rank(asked)
    for i, x in enumerate(asked):
        means = [rows.mean(0) for rows in tasks]
        z = [float(x @ m) / math.sqrt(float(x @ x) * float(m @ m)) for m in means]
        best = z.index(max(z))
        assert found.task[i] == best
        assert found.margin[i] == pytest.approx(max(z) - sorted(z)[-2], abs=1e-6)
        z[best] *= factor
        weights = [math.exp(one) / sum(map(math.exp, z)) for one in z]
        np.testing.assert_allclose(found.posterior[i], weights, atol=1e-6)


def test_a_mean_of_length_0_is_near_nothing() -> None:
    statistics = [fit_statistics(np.array([[1.0, 0.0], [-1.0, 0.0]]), 1, 0), fit_statistics(np.eye(2), 1, 0)]
    router = Similarity().build(statistics)
    np.testing.assert_allclose(router.scores(np.array([[1.0, 0.0], [0.0, 0.0]])), [[0, math.sqrt(0.5)], [0, 0]])
