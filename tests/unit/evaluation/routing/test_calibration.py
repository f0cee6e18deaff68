"""How sure a router was, kept in hundredths, against sums over the rows themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorabank.evaluation.routing.calibration import Sure, detail, sure_rows


def test_every_threshold_of_two_decimals_is_exact() -> None:
    chance = np.random.default_rng(1)
    confidence = np.concatenate([chance.uniform(size=300), np.arange(101) / 100, [1.0 + 1e-16]])
    routed = [("a", "b", "c")[k] for k in chance.integers(3, size=len(confidence))]
    scores = chance.integers(2, size=len(confidence)).astype(float)
    kept = json.loads(json.dumps(detail(routed, confidence, scores.tolist())))
    for hundredth in range(101):
        threshold = hundredth / 100
        sure = confidence >= threshold
        found = sure_rows(kept, "b", threshold)
        assert found.rows == sure.sum()
        assert found.right == (sure & (np.array(routed) == "b")).sum()
        assert found.confidence == pytest.approx(confidence[sure].sum())
        assert found.score == scores[sure].sum()


def test_a_cell_is_as_large_however_many_rows_it_has() -> None:
    kept = detail(["a"] * 100_000, np.linspace(0, 1, 100_000), [1.0] * 100_000)
    assert len(kept["a"]) == 101


def test_no_rows_have_no_mean() -> None:
    assert Sure().share(0.0) is None
    assert (Sure(1, 1, 0.5, 1.0) + Sure(3, 2, 2.5, 0.0)).share(3.0) == 0.75
