"""Best task and margin in one pass, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from lorabank.compose.routers import nearest
from lorabank.compose.routers.gaussian import GaussianRouter
from lorabank.compose.routers.kmeans import KMeansRouter
from lorabank.compose.routers.nearest import NearestPrototypes
from lorabank.compose.routers.ranking import TIE, rank
from lorabank.compose.routers.statistics import TaskStatistics, fit_statistics


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def plainly(tasks: list[np.ndarray], query: np.ndarray) -> tuple[int, float, float]:
    """Task, score and margin by the definition: differences, a loop over the tasks, the tie rule."""
    scores = [-min(float(((query.astype(float) - p) ** 2).sum()) for p in task.astype(float)) for task in tasks]
    best = max(scores)
    task = next(t for t, score in enumerate(scores) if score >= best - TIE * max(1.0, abs(best)))
    others = [score for t, score in enumerate(scores) if t != task]
    return task, scores[task], max(0.0, scores[task] - max(others)) if others else float("inf")


def check(tasks: list[np.ndarray], queries: np.ndarray) -> None:
    found = NearestPrototypes(tasks).rank(queries.astype(np.float64))
    expected = [plainly(tasks, query) for query in queries]
    assert found.task.tolist() == [task for task, _, _ in expected]
    np.testing.assert_allclose(found.score, [score for _, score, _ in expected], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.margin, [margin for _, _, margin in expected], rtol=1e-9, atol=1e-12)


def test_uneven_tasks_against_loops() -> None:
    rng = np.random.default_rng(0)
    check([unit(rng, k, 48) for k in (1, 5, 2, 9, 1)], unit(rng, 70, 48))


def test_one_task_has_no_rival() -> None:
    rng = np.random.default_rng(0)
    check([unit(rng, 3, 8)], unit(rng, 5, 8))


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_what_float32_cannot_tell_apart(offset: float) -> None:
    """Prototypes a few last bits from each other: a product in float32 orders them by its rounding."""
    rng = np.random.default_rng(1)
    base = unit(rng, 1, 64) + np.float32(offset)
    towards = rng.choice(np.array([-np.inf, np.inf], np.float32), (40, *base.shape))  # float64 would step too little
    near = [np.nextafter(base, direction) for direction in towards]
    queries = base + 0.3 * unit(rng, 50, 64)
    queries = queries.astype(np.float32)
    check([np.concatenate(near[i : i + 2]) for i in range(0, 40, 2)], queries)
    # How a library adds up depends on the processor's kernel. One number after the other is a product of float32 too.
    prototypes, products = np.concatenate(near), np.zeros((len(queries), len(near)), np.float32)
    for column in range(prototypes.shape[1]):
        products += queries[:, column, None] * prototypes[:, column]
    wrong = [i for i, query in enumerate(queries) if products[i].argmax() // 2 != plainly(near, query)[0] // 2]
    assert wrong, "float32 orders these, so they show nothing"


def test_blocks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    monkeypatch.setattr(nearest, "_SCREENED", 45)
    monkeypatch.setattr(nearest, "_CANDIDATES", 20)
    check([unit(rng, 3, 8) for _ in range(5)], unit(rng, 10, 8))


def test_margins_by_hand() -> None:
    ranked = rank(np.array([[1.0, 3.0, 2.5], [2.0, 2.0 + 1e-12, -1.0], [5.0, 0.0, 5.0]]))
    assert ranked.task.tolist() == [1, 0, 0]
    assert ranked.score.tolist() == [3.0, 2.0, 5.0]
    assert ranked.margin.tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize("own", [0.0, 0.1, 1.0])
def test_the_gaussian_scores_are_those_of_a_loop_over_tasks(own: float) -> None:
    rng = np.random.default_rng(3)
    statistics = [fit_statistics(unit(rng, 90, 12) * (1 + t) + t, 2, 0) for t in range(4)]
    queries = unit(rng, 30, 12) * 2 + 1
    pooled = sum(s.scatter.astype(float) for s in statistics) / sum(s.n for s in statistics)
    expected = np.empty((30, 4))
    for t, s in enumerate(statistics):
        mixed = (1 - own) * pooled + own * s.scatter / s.n  # the own part in float32, as it is kept
        shrunk = 0.8 * mixed + 0.2 * np.trace(mixed) / 12 * np.eye(12)
        for i, query in enumerate(queries):
            apart = query.astype(float) - s.mean.astype(float)
            linear = query @ np.linalg.solve(shrunk, s.mean.astype(float)) if own == 0 else None
            half = np.linalg.slogdet(shrunk)[1] / 2
            expected[i, t] = -0.5 * apart @ np.linalg.solve(shrunk, apart) - half
            if linear is not None:  # without what is the same for all tasks
                expected[i, t] = linear - 0.5 * s.mean.astype(float) @ np.linalg.solve(shrunk, s.mean.astype(float))
    found = GaussianRouter(statistics, 0.2, own)
    np.testing.assert_allclose(found.scores(queries), expected, rtol=1e-9, atol=1e-9)
    ordered = np.sort(expected, axis=1)
    np.testing.assert_allclose(found.rank(queries).margin, ordered[:, -1] - ordered[:, -2], rtol=1e-8, atol=1e-9)


def test_the_router_takes_the_statistics_as_they_are() -> None:
    rng = np.random.default_rng(4)
    tasks = [unit(rng, 2, 6), unit(rng, 3, 6)]
    statistics = [TaskStatistics(p, p.mean(0), np.eye(6, dtype=np.float32), 9) for p in tasks]
    queries = unit(rng, 20, 6)
    assert KMeansRouter(statistics).rank(queries).task.tolist() == [plainly(tasks, query)[0] for query in queries]
