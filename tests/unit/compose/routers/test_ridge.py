"""Ridge regression from sums against the same regression from all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Theirs

from lorabank.compose.routers import ridge
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ridge import RandomFeatures, Ridge, random_features
from lorabank.core.errors import DamagedError
from tests.unit.compose.routers.test_routers import random_tasks


def query(rows: np.ndarray) -> Query:
    return Query(["x"] * len(rows), lambda layers: [rows.astype(np.float32) for _ in layers])


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_it_is_least_squares_to_the_indicator_of_the_task(monkeypatch: pytest.MonkeyPatch, penalty: float) -> None:
    monkeypatch.setattr(ridge, "_WIDTH", 24)
    ridge._projection.cache_clear()
    tasks, asked = random_tasks((40, 70, 55)), random_tasks(seed=5)[0]
    method = Ridge(penalty=penalty)
    found = method.router([method.from_samples(query(rows), (2, 4), 5, 0) for rows in tasks]).rank(query(asked))
    drawn = np.random.RandomState(0).randn(6, 24)
    phi = np.maximum(np.concatenate(tasks).astype(np.float32).astype(np.float64) @ drawn, 0)
    own = np.repeat(np.arange(3), [len(rows) for rows in tasks])
    weights = 1 / np.bincount(own)[own]
    alpha = penalty * (weights * (phi**2).sum(1)).sum() / 24
    theirs = Theirs(alpha=alpha, fit_intercept=False, solver="cholesky").fit(
        phi, np.eye(3)[own], sample_weight=weights
    )
    scores = np.sort(theirs.predict(np.maximum(asked.astype(np.float32).astype(np.float64) @ drawn, 0)), 1)
    np.testing.assert_allclose(found.score, scores[:, -1], atol=1e-3)  # 16 bits of what is stored
    np.testing.assert_allclose(found.margin, scores[:, -1] - scores[:, -2], atol=1e-3)
    ridge._projection.cache_clear()


def test_the_sums_are_those_of_the_rows() -> None:
    rows = random_tasks((40,))[0].astype(np.float32)
    found = RandomFeatures.from_bytes(RandomFeatures.fit(query(rows), 4).to_bytes())
    phi = random_features(rows)
    assert (found.layer, found.d, found.n, phi.shape) == (4, 6, 40, (40, 512))
    np.testing.assert_allclose(found.total, phi.sum(0), rtol=1e-6)
    roots = np.sqrt((phi**2).sum(0))
    apart = np.abs(ridge.expanded(found.roots, found.shares) - phi.T @ phi)
    assert (apart <= 2e-5 * np.outer(roots, roots)).all()


@pytest.mark.parametrize("data", [b"", b"broken"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedError, match="random features"):
        RandomFeatures.from_bytes(data)
