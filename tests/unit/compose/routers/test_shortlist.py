"""Of many tasks few are scored, and the choice is that of all scores; these are computed here, by the definition."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from lorabank.compose.routers import gaussian
from lorabank.compose.routers.gaussian import GaussianRouter
from lorabank.compose.routers.gaussians.covariances import Covariances
from lorabank.compose.routers.ranking import TIE
from lorabank.compose.routers.statistics import TaskStatistics

SHRINKAGE = 0.1


def statistics_of(rows: np.ndarray) -> TaskStatistics:
    mean = rows.mean(0)
    scatter = (rows - mean).T @ (rows - mean)
    return TaskStatistics(rows[:1].astype(np.float32), mean.astype(np.float32), scatter.astype(np.float32), len(rows))


def all_scores(
    statistics: list[TaskStatistics], own: float, queries: np.ndarray, shrinkage: float = SHRINKAGE
) -> np.ndarray:
    """[n, T] log-densities without their common constant."""
    d = queries.shape[1]
    pooled = sum(s.scatter.astype(float) for s in statistics) / sum(s.n for s in statistics)
    found = []
    for s in statistics:
        mixed = (1 - own) * pooled + own * s.scatter / s.n  # the own part in float32, as it is kept
        covariance = (1 - shrinkage) * mixed + shrinkage * np.trace(mixed) / d * np.eye(d)
        apart = queries - s.mean.astype(float)
        squares = (apart * np.linalg.solve(covariance, apart.T).T).sum(1)
        found.append(-squares / 2 - np.linalg.slogdet(covariance)[1] / 2)
    return np.stack(found, 1)


def likely(tasks: int, rows: int, d: int, *, apart: float, seed: int) -> list[np.ndarray]:
    """Tasks of features about a common mean, each wider in a few directions of its own."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d)) / np.arange(1, d + 1) ** 0.5
    drawn = []
    for _ in range(tasks):
        wide = rng.normal(size=(3, d))
        noise = rng.normal(size=(rows, d)) @ root + rng.normal(size=(rows, 3)) @ wide
        drawn.append(noise + apart * rng.normal(size=d) + 30.0)
    return drawn


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call scores of one task; bounds are made with the first text."""
    counts: list[int] = []
    score = GaussianRouter.score
    monkeypatch.setattr(gaussian, "_BOUNDS", 0)
    monkeypatch.setattr(
        GaussianRouter, "score", lambda router, task, rows: counts.append(len(rows)) or score(router, task, rows)
    )
    return counts


def check(statistics: list[TaskStatistics], own: float, queries: np.ndarray, router: GaussianRouter) -> None:
    expected = np.sort(all_scores(statistics, own, queries), 1)
    found = router.rank(queries)
    plain = all_scores(statistics, own, queries).argmax(1)
    clear = expected[:, -1] - expected[:, -2] > 10 * TIE * np.abs(expected[:, -1])
    np.testing.assert_array_equal(found.task[clear], plain[clear])
    np.testing.assert_allclose(found.score, expected[:, -1], rtol=1e-8, atol=1e-7)
    off = np.abs(found.margin - (expected[:, -1] - expected[:, -2]))
    assert (off <= 1e-6 + 1e-9 * np.abs(expected[:, -1])).all()


@pytest.mark.parametrize("own", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "apart"), [(12, 0.3), (200, 0.05), (60, 2.0)])
def test_the_choice_and_the_margin_are_those_of_all_scores(scored, own: float, rows: int, apart: float) -> None:
    tasks = likely(60, rows, 24, apart=apart, seed=rows)
    statistics = [statistics_of(task) for task in tasks]
    rng = np.random.default_rng(1)
    near = np.concatenate([task[:2] for task in tasks]) + 0.1 * rng.normal(size=(120, 24))
    far = near * rng.normal(size=(120, 1)) * 5
    router = GaussianRouter(statistics, SHRINKAGE, own)
    check(statistics, own, np.concatenate([near, far]), router)
    assert router._shortlist is not None
    assert sum(scored) < 240 * 60


@pytest.mark.parametrize("shrinkage", [SHRINKAGE, 1e-6])
@pytest.mark.parametrize("own", [0.1, 0.9, 1.0])
def test_no_score_lies_above_its_bound(scored, own: float, shrinkage: float) -> None:
    """Also where one direction never varies, and all covariances lie a millionth from having no inverse."""
    tasks = likely(40, 30, 32, apart=0.2, seed=5)
    for task in tasks:
        task[:, 7] = 30.0
    statistics = [statistics_of(task) for task in tasks]
    queries = np.concatenate([np.concatenate(tasks)[::7], np.zeros((1, 32)), np.full((1, 32), 1e4)])
    router = GaussianRouter(statistics, shrinkage, own)
    router.rank(queries)
    assert router._shortlist is not None
    scores = all_scores(statistics, own, queries, shrinkage)
    white = router._shortlist.whitened(queries)
    bounds = np.stack([router._shortlist.bounds(white, task) for task in range(len(tasks))], 1)
    rough = router._shortlist.rough_bounds(white)
    assert (rough >= scores - 1e-7 * np.abs(scores)).all()
    assert (bounds >= scores - 1e-7 * np.abs(scores)).all()
    if (own, shrinkage) == (0.1, SHRINKAGE):  # and they say something
        assert np.median(bounds - scores) < 0.5 * np.median(scores.max(1) - scores.min(1))


def test_few_of_many_tasks_that_are_apart_are_scored(scored) -> None:
    tasks = likely(300, 40, 32, apart=1.0, seed=3)
    queries = np.concatenate([task[:1] for task in tasks])
    GaussianRouter([statistics_of(task) for task in tasks], SHRINKAGE, 0.1).rank(queries)
    assert sum(scored) < 10 * len(queries)


def test_equal_tasks_go_to_the_earliest_of_them(scored) -> None:
    one, *others = likely(30, 50, 16, apart=2.0, seed=7)
    statistics = [statistics_of(rows) for rows in [*others, one, one, one]]
    ranked = GaussianRouter(statistics, SHRINKAGE, 0.1).rank(one[:20])
    own = ranked.task >= len(others)
    assert own.sum() > 10
    assert set(ranked.task[own]) == {len(others)}
    np.testing.assert_allclose(ranked.margin[own], 0, atol=1e-6)


def test_the_bounds_wait_for_enough_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as many scores, so a single text has all tasks scored; a session makes them once."""
    tasks = likely(30, 50, 16, apart=0.5, seed=8)
    statistics = [statistics_of(task) for task in tasks]
    router = GaussianRouter(statistics, SHRINKAGE, 0.1)
    single = [router.rank(tasks[0][:1]) for _ in range(3)]
    assert router._shortlist is None
    router.rank(np.concatenate([task for task in tasks]))
    made = router._shortlist
    assert made is not None
    again = router.rank(tasks[0][:1])
    assert router._shortlist is made
    assert all(one.task == again.task and np.isclose(one.margin, again.margin) for one in single)


def test_few_tasks_are_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session asks for one text after the other."""
    tasks = likely(5, 50, 16, apart=0.5, seed=8)
    router = GaussianRouter([statistics_of(task) for task in tasks], SHRINKAGE, 0.1)
    expected = router.rank(tasks[3][:1])
    monkeypatch.setattr(Covariances, "_packed", None)
    again = router.rank(tasks[3][:1])
    assert (again.task, again.margin) == (expected.task, expected.margin)


def test_nothing_that_all_tasks_share_has_an_inverse(scored) -> None:
    """Where a task's rows are all alike, no covariance lies below every other: all tasks are scored."""
    tasks = [*likely(20, 50, 8, apart=0.5, seed=9), np.full((5, 8), 29.0)]
    statistics = [statistics_of(task) for task in tasks]
    router = GaussianRouter(statistics, SHRINKAGE, 1.0)
    queries = np.concatenate(tasks)[::9]
    expected = all_scores(statistics[:-1], 1.0, queries)
    alike = -((queries - 29.0) ** 2).sum(1) / 2  # the identity
    ranked = router.rank(queries)
    assert ranked.task.tolist() == np.hstack([expected, alike[:, None]]).argmax(1).tolist()
    assert len(scored) == 21


def test_on_texts_every_choice_is_that_of_all_scores(scored) -> None:
    """The demo's texts under MiniLM, in groups of similar ones as tasks; its test rows and rows of no task."""
    from lorabank.core.task_kinds import DEFAULT_BASE
    from lorabank.models.bases.loading import describe_base
    from lorabank.models.bases.open_base import OpenBase
    from lorabank.models.bases.resolving import resolve_base
    from lorabank.models.mixing.features import extract_features

    base = OpenBase(describe_base(resolve_base(DEFAULT_BASE))).load(device=torch.device("cpu"), dtype=torch.float32)
    folder = files("lorabank.demo") / "data"

    def features(name: str, split: str, rows: int) -> np.ndarray:
        lines = (folder / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        texts = [json.loads(line)["text"] for line in lines]
        return extract_features(base.model, base.tokenizer, texts, max_length=32).astype(float)

    names = ("products", "sentiment", "spam", "tweets")
    groups = []
    for name in names:
        rows = features(name, "train", 120)
        labels = KMeans(8, n_init=1, random_state=0).fit_predict(rows)
        groups += [rows[labels == label] for label in range(8)]
    statistics = [statistics_of(rows) for rows in groups]
    queries = np.concatenate([features(name, "test", 40) for name in names])
    router = GaussianRouter(statistics, SHRINKAGE, 0.1)
    check(statistics, 0.1, queries, router)
    assert router._shortlist is not None
    assert sum(scored) < 0.9 * len(queries) * len(groups)
