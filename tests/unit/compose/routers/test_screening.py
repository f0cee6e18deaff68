"""The first few texts: each task is read, scored or ruled out, and let go; choices and margins are those of all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lorabank.compose.routers import gaussian
from lorabank.compose.routers.gaussian import GaussianRouter
from lorabank.compose.routers.gaussians.screening import Screening
from lorabank.compose.routers.statistics import StoredStatistics, TaskStatistics
from tests.unit.compose.routers.test_shortlist import SHRINKAGE, all_scores, check, likely, statistics_of


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No triangles are small enough to be held at once."""
    monkeypatch.setattr(gaussian, "_TRIANGLE_BYTES", 0)


@pytest.mark.parametrize("own", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "apart"), [(12, 0.3), (200, 0.05), (60, 2.0)])
def test_the_choice_and_the_margin_are_those_of_all_scores(own: float, rows: int, apart: float) -> None:
    tasks = likely(40, rows, 24, apart=apart, seed=rows)
    statistics = [statistics_of(task) for task in tasks]
    rng = np.random.default_rng(1)
    near = np.concatenate([task[:1] for task in tasks]) + 0.1 * rng.normal(size=(40, 24))
    for queries in (near[:1], near[5:6] * 5, near[10:13], near[20:28] * rng.normal(size=(8, 1))):
        check(statistics, own, queries, GaussianRouter(statistics, SHRINKAGE, own))


def test_the_same_bits_as_with_all_scores() -> None:
    tasks = likely(40, 60, 24, apart=0.5, seed=2)
    statistics = [statistics_of(task) for task in tasks]
    for queries in (tasks[3][:1], tasks[8][:5]):
        screened = GaussianRouter(statistics, SHRINKAGE, 0.1).rank(queries)
        every = gaussian.rank(GaussianRouter(statistics, SHRINKAGE, 0.1).scores(queries))
        for name in ("task", "score", "margin"):
            np.testing.assert_array_equal(getattr(screened, name), getattr(every, name))


@pytest.mark.parametrize("shrinkage", [SHRINKAGE, 1e-6])
@pytest.mark.parametrize("own", [0.1, 0.9, 1.0])
def test_no_score_lies_above_its_bounds(own: float, shrinkage: float) -> None:
    """Also where one direction never varies, and all covariances lie a millionth from having no inverse."""
    tasks = likely(40, 30, 32, apart=0.2, seed=5)
    for task in tasks:
        task[:, 7] = 30.0
    statistics = [statistics_of(task) for task in tasks]
    queries = np.concatenate([np.concatenate(tasks)[::70], np.zeros((1, 32)), np.full((1, 32), 1e4)])
    scores = all_scores(statistics, own, queries, shrinkage)
    within = sum(s.scatter.astype(float) for s in statistics) / sum(s.n for s in statistics)
    means = np.stack([s.mean.astype(float) for s in statistics])
    traces = [float(np.trace(s.scatter)) for s in statistics]
    counts, spectrum = [s.n for s in statistics], np.linalg.eigh(within)
    screening = Screening(queries, means, counts, traces, within, spectrum, shrinkage, own)
    for way in (screening.rough_bounds, screening.bounds):
        bounds = np.stack([way(t, s) for t, s in enumerate(statistics)], 1)
        assert (bounds >= scores - 1e-7 * np.abs(scores)).all()
        if (own, shrinkage) == (0.1, SHRINKAGE):  # and they say something
            assert np.median(bounds - scores) < 0.5 * np.median(scores.max(1) - scores.min(1))


def reads(statistics: list[TaskStatistics], seen: list[int]) -> list[Callable[[], TaskStatistics]]:
    def one(task: int) -> TaskStatistics:
        seen.append(task)
        return statistics[task]

    return [lambda task=task: one(task) for task in range(len(statistics))]  # type: ignore[misc]


def test_few_are_factored_and_nothing_is_held_until_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = likely(200, 40, 32, apart=1.0, seed=3)
    seen: list[int] = []
    scored: list[int] = []
    score = GaussianRouter.score
    monkeypatch.setattr(
        GaussianRouter, "score", lambda router, task, rows: scored.append(task) or score(router, task, rows)
    )
    router = GaussianRouter(StoredStatistics(reads([statistics_of(task) for task in tasks], seen)), SHRINKAGE, 0.1)
    assert seen == list(range(200))
    first = router.rank(tasks[7][:1])
    assert first.task.tolist() == [7]
    assert len(scored) < 20
    assert len(seen) <= 200 + 200 + len(scored)
    second = router.rank(tasks[7][:1])
    assert second.task.tolist() == [7]
    np.testing.assert_array_equal(second.margin, first.margin)
    seen.clear()
    router.rank(tasks[7][:1])
    assert not seen


def test_equal_tasks_go_to_the_earliest_of_them() -> None:
    one, *others = likely(30, 50, 16, apart=2.0, seed=7)
    statistics = [statistics_of(rows) for rows in [*others, one, one, one]]
    ranked = GaussianRouter(statistics, SHRINKAGE, 0.1).rank(one.mean(0)[None])
    assert ranked.task.tolist() == [len(others)]
    np.testing.assert_allclose(ranked.margin, 0, atol=1e-6)


def test_a_task_whose_rows_are_all_alike() -> None:
    """Nothing bounds its score where a task's own covariance counts alone: it is scored, by the identity."""
    tasks = [*likely(20, 50, 8, apart=0.5, seed=9), np.full((5, 8), 29.0)]
    statistics = [statistics_of(task) for task in tasks]
    for query in (np.full((1, 8), 29.1), tasks[4][:1]):
        expected = all_scores(statistics[:-1], 1.0, query)
        alike = -((query - 29.0) ** 2).sum(1) / 2
        ranked = GaussianRouter(statistics, SHRINKAGE, 1.0).rank(query)
        assert ranked.task.tolist() == np.hstack([expected, alike[:, None]]).argmax(1).tolist()
