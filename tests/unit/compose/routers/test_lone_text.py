"""A text by itself among many tasks: its answers are those of all scores, computed here in float64 by the definition.

The tasks are made to be hard for bounds: equal ones and nearly equal ones, much wider and much narrower ones, and one
whose rows are all alike. Some texts lie far from all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lorabank.compose.routers import gaussian
from lorabank.compose.routers.evidence import Evidence
from lorabank.compose.routers.gaussian import GaussianRouter
from lorabank.compose.routers.grams import BUCKETS, dense, of_text
from lorabank.compose.routers.layered import Layered, LayeredRouter
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import TIE
from tests.unit.compose.routers.test_shortlist import all_scores, likely, statistics_of

LAYERS, WIDTH, TEMPERATURE = (2, 4), 16, 5.0
WORDS = ["win cash now", "a fine film", "order id 77", "hello @you", "Tür ändern", "call 0800", "", "x"]
Rows = tuple[list[str], dict[int, np.ndarray]]


def rows_of(task: int, n: int = 40, *, scale: float = 1.0, apart: float = 1.0) -> Rows:
    dice = np.random.default_rng(task)
    texts = [" ".join(dice.choice(WORDS, 3)) * int(dice.integers(1, 3)) for _ in range(n)]
    features = {}
    for layer in LAYERS:
        root = np.random.default_rng(layer).normal(size=(WIDTH, WIDTH)) / np.arange(1, WIDTH + 1) ** 0.5
        wide = dice.normal(size=(n, 3)) @ dice.normal(size=(3, WIDTH))
        noise = scale * (dice.normal(size=(n, WIDTH)) @ root + wide)
        features[layer] = (noise + apart * dice.normal(size=WIDTH) + 5).astype(np.float32)
    return texts, features


def moved(rows: Rows, by: float) -> Rows:
    """The same texts, with features that are moved a little: to tasks that nothing but the last digits tells apart."""
    return rows[0], {layer: (own + np.float32(by)).astype(np.float32) for layer, own in rows[1].items()}


def hard_tasks() -> list[Rows]:
    plain = [rows_of(t, apart=0.3) for t in range(24)]
    equal = [plain[3], plain[3], moved(plain[3], 1e-6), moved(plain[5], 1e-5), moved(plain[5], -1e-5)]
    wide = [rows_of(t, scale=scale) for t, scale in ((50, 30.0), (51, 1e3), (52, 1e-2), (53, 1e-4))]
    alike = rows_of(60, 5)
    return [*plain, *equal, *wide, (alike[0], {layer: own[:1].repeat(5, 0) for layer, own in alike[1].items()})]


def query(rows: Rows, one: int) -> Query:
    return Query(rows[0][one : one + 1], lambda layers: [rows[1][layer][one : one + 1] for layer in layers])


def evidence(rows: Rows) -> Evidence:
    every = Query(rows[0], lambda layers: [rows[1][layer] for layer in layers])
    return Evidence.fit(every, LAYERS, 2, 0)


def asked() -> list[Query]:
    tasks = hard_tasks()
    near = [query(rows, 7 % len(rows[0])) for rows in tasks]
    far = [query((rows[0], {k: own * np.float32(9) for k, own in rows[1].items()}), 2) for rows in tasks[::4]]
    return [*near, *far, query((["none"], {layer: np.full((1, WIDTH), 1e4, np.float32) for layer in LAYERS}), 0)]


def every_score(tasks: list[Evidence], one: Query, weight: float = 3.0, prior: float = 0.1) -> np.ndarray:
    """[T] by the definition, from what is kept of the tasks."""
    total = np.zeros(len(tasks))
    for layer, own in zip(LAYERS, one.features(LAYERS), strict=True):
        total += all_scores([task.layers[layer] for task in tasks], 0.1, own.astype(np.float64))[0]
    counts = np.stack([dense(task.grams) for task in tasks])
    extra = prior * BUCKETS
    pooled = counts.sum(0) / counts.sum()
    log_p = np.log((counts + extra * (pooled + 1e-8)) / (counts.sum(1, keepdims=True) + extra))
    v = dense(of_text(one.texts[0]))
    return np.asarray(total + weight * log_p @ v / np.sqrt(v.sum()))


def check_posterior(found: np.ndarray, scores: np.ndarray, room: float) -> None:
    """The likely tasks have the odds that their scores say; some of the others count as impossible."""
    odds = np.exp((scores - scores.max()) / TEMPERATURE)
    likely = scores > scores.max() - 5 * TEMPERATURE + room
    counted = found > 0
    assert counted[likely].all()
    np.testing.assert_allclose(found[counted], odds[counted] / odds[counted].sum(), rtol=1e-12 + room / TEMPERATURE)


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are made with the first text."""
    monkeypatch.setattr(gaussian, "_BOUNDS", 0)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tasks that were scored."""
    tasks: list[int] = []
    score = GaussianRouter.score
    monkeypatch.setattr(
        GaussianRouter, "score", lambda router, task, rows: tasks.append(task) or score(router, task, rows)
    )
    return tasks


def bounded(router: LayeredRouter) -> bool:
    return all(layer._shortlist is not None for layer in router._gaussians)


def test_task_margin_and_likely_tasks_are_those_of_all_scores(scored: list[int]) -> None:
    tasks = [evidence(rows) for rows in hard_tasks()]
    router = Layered(temperature=TEMPERATURE).router(tasks)
    for one in asked():
        found, wanted = router.rank(one), every_score(tasks, one)
        best, second = np.sort(wanted)[::-1][:2]
        room = 1e-8 * max(1.0, abs(best))  # float64, and covariances of which some nearly lack an inverse
        assert wanted[found.task[0]] >= best - room
        if best - second > max(room, 10 * TIE * abs(best)):
            assert found.task[0] == wanted.argmax()
        np.testing.assert_allclose(found.score[0], best, rtol=1e-8)
        np.testing.assert_allclose(found.margin[0], best - second, atol=room)
        check_posterior(found.posterior[0], wanted, room)
    assert bounded(router)
    assert len(scored) < len(asked()) * len(tasks) * len(LAYERS)


def test_few_of_many_tasks_are_scored(scored: list[int]) -> None:
    """Hardly more than those that count; where nothing but the last digits tells tasks apart, all of these."""
    plain = [rows_of(t, apart=2.0) for t in range(60)]
    tasks = [evidence(rows) for rows in [*plain, plain[3], moved(plain[5], 1e-6)]]
    router, count = Layered(temperature=TEMPERATURE).router(tasks), 0
    for rows in plain:
        scores = every_score(tasks, query(rows, 0))
        count += int((scores > min(scores.max() - 5 * TEMPERATURE, np.sort(scores)[-2])).sum())
        router.rank(query(rows, 0))
    assert bounded(router)
    assert count * len(LAYERS) <= len(scored) < 1.2 * count * len(LAYERS)
    scored.clear()
    router.rank(query(plain[3], 1))
    assert {3, 60} <= set(scored)


def test_a_batch_and_its_texts_one_by_one_get_the_same_answers() -> None:
    tasks = [evidence(rows) for rows in hard_tasks()]
    router, every = Layered(temperature=TEMPERATURE).router(tasks), asked()
    together = router.rank(
        Query(
            [one.texts[0] for one in every],
            lambda layers: [np.concatenate([one.features((layer,))[0] for one in every]) for layer in layers],
        )
    )
    for i, one in enumerate(every):
        alone = router.rank(one)
        assert alone.task[0] == together.task[i]
        for name in ("score", "margin"):
            ours, theirs = getattr(alone, name)[0], getattr(together, name)[i]
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * max(1.0, abs(alone.score[0])))


def test_the_order_of_the_tasks_does_not_matter() -> None:
    tasks = [evidence(rows) for rows in hard_tasks()[:24]]
    order = np.random.default_rng(0).permutation(len(tasks))
    router, other = (Layered(temperature=TEMPERATURE).router(of) for of in (tasks, [tasks[t] for t in order]))
    for one in asked()[:24]:
        found, again = router.rank(one), other.rank(one)
        assert found.task[0] == order[again.task[0]]
        np.testing.assert_allclose(found.margin, again.margin, rtol=1e-9)
        np.testing.assert_allclose(found.posterior[:, order], again.posterior, atol=1e-9)


def check_bounds(statistics: list[Any], own: float, lone: list[np.ndarray]) -> None:
    """Also of texts so far away that nothing else counts."""
    router = GaussianRouter(statistics, 0.1, own)
    for text in (one.astype(np.float64) * scale for one in lone for scale in (1.0, -3.0, 0.0, 1e6)):
        router.rank(text)
        bounds = router._shortlist
        assert bounds is not None
        white, scores = bounds.whitened(text), all_scores(statistics, own, text)
        closer = np.stack([bounds.bounds(white, task) for task in range(len(statistics))], 1)
        for above in (bounds.rough_bounds(white), closer):
            assert (above >= scores - 1e-7 * np.abs(scores)).all()


@pytest.mark.parametrize("own", [0.02, 0.1, 1.0])
def test_no_score_of_a_text_by_itself_lies_above_its_bound(own: float) -> None:
    rows = hard_tasks()[:-1]  # with the last, nothing lies below every covariance where a task's own counts alone
    check_bounds([evidence(one).layers[2] for one in rows], own, [one[1][2][:1] for one in rows])


@pytest.mark.parametrize("own", [0.02, 0.1, 1.0])
def test_nor_where_tasks_have_fewer_rows_than_features(own: float) -> None:
    """Most directions of such a task are those that it shares, and the few that are its own are not all kept."""
    tasks = likely(20, 12, 96, apart=0.3, seed=9)
    check_bounds([statistics_of(rows) for rows in tasks], own, [rows[:1] for rows in tasks[::2]])
