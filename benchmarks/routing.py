"""A query to its task: one product over all prototypes, against a loop over the tasks and `torch.cdist`.

The floor for many prototypes is reading them once: the largest number of their float32 matrix is looked for, which is
done at the speed of the memory. Among many Gaussians the peer is to score each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Comparison, Result, compare, from_comparison
from lorabank.compose.routers.evidence import Evidence
from lorabank.compose.routers.gaussian import Gaussian
from lorabank.compose.routers.grams import of_texts
from lorabank.compose.routers.layered import Layered
from lorabank.compose.routers.nearest import NearestPrototypes
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import rank
from lorabank.compose.routers.statistics import StoredStatistics, TaskStatistics

WIDTH, CENTROIDS = 384, 5
TASKS, MANY_TASKS = 100, 10_000
BATCHES = (64, 256)
QUERY_BAR, FLOOR_BAR = 0.05, 1.3  # ms, and times the floor
GAUSSIANS, ROWS, OF_GAUSSIANS = 400, 1000, 1000
GAUSSIAN_BAR = 0.3  # ms
LAYERED, LAYERS = 1000, (2, 4)
LAYERED_BAR, READY_BAR, KEPT_BAR = 2.0, 1.0, 0.5  # ms, s and MB
ROUNDS = 20


def measure() -> list[Result]:
    """Milliseconds of a query among 500 prototypes and 400 Gaussians, and one among 50,000 beside their floor."""
    torch.set_num_threads(1)
    results = [_query(TASKS, size) for size in BATCHES]
    tasks = _tasks(MANY_TASKS)
    router, matrix, query = NearestPrototypes(tasks), np.concatenate(tasks), _unit(1).astype(np.float64)
    forms: dict[str, Callable[[], object]] = {"floor": matrix.max, "rank": lambda: router.rank(query)}
    seen = compare(forms, baseline="floor", rounds=ROUNDS)["rank"]
    what = f"one query among {len(matrix):,} prototypes, against reading them"
    nearest = replace(from_comparison("routing", what, seen, FLOOR_BAR), floor=1.0)
    return [*results, nearest, _gaussians(), *_layered()]


def _gaussians() -> Result:
    """As many texts at once as a command may bring."""
    statistics, texts = _overlapping()
    queries = texts[:OF_GAUSSIANS]
    start = time.process_time()
    router = Gaussian().build(statistics)
    router.rank(queries[:1])
    first = time.process_time() - start
    router.rank(texts)  # enough of them: the bounds are made
    made = time.process_time() - start - first
    forms: dict[str, Callable[[], object]] = {
        "rank": lambda: router.rank(queries),
        "all scores": lambda: rank(router.scores(queries)),
    }
    peer = compare(forms, baseline="rank", rounds=ROUNDS // 4)["all scores"]
    chosen, every = router.rank(texts), rank(router.scores(texts))
    detail = asdict(peer) | {
        "seconds to the first text": first,
        "seconds to the bounds": made,
        "same task": float((chosen.task == every.task).mean()),
        "largest difference of a margin": float(np.abs(chosen.margin - every.margin).max()),
    }
    each, theirs = (seconds * 1000 / len(queries) for seconds in (peer.baseline_seconds, peer.seconds))
    what = f"a query of a batch of {len(queries)} among {GAUSSIANS} Gaussians, with its margin, against scoring each"
    return Result("routing", what, each, GAUSSIAN_BAR, "ms", detail, peer=theirs)


def _overlapping() -> tuple[list[TaskStatistics], NDArray[np.float64]]:
    """Statistics of tasks with a common covariance, some wide directions of their own and means not far apart."""
    dice = np.random.default_rng(0)
    spread = 1 / np.sqrt(np.arange(1, WIDTH + 1) + 20)
    tasks, texts = [], []
    for _ in range(GAUSSIANS):
        own = dice.normal(size=(8, WIDTH)) * spread * 0.4
        centre = 0.35 * dice.normal(size=WIDTH) * spread
        rows = centre + dice.normal(size=(ROWS + 4, WIDTH)) * spread + dice.normal(size=(ROWS + 4, 8)) @ own
        trained, apart = rows[:ROWS], rows[:ROWS] - rows[:ROWS].mean(0)
        texts.append(rows[ROWS:])
        mean, scatter = trained.mean(0).astype(np.float32), (apart.T @ apart).astype(np.float32)
        tasks.append(TaskStatistics(trained[:CENTROIDS].astype(np.float32), mean, scatter, ROWS))
    return tasks, dice.permutation(np.concatenate(texts))


def _layered() -> list[Result]:
    """The default router over many tasks: what one keeps, when it is ready, what a text costs beside its features."""
    tasks = [_evidence(task) for task in range(LAYERED)]
    stored = [one.to_bytes() for one, _ in tasks]
    asked = [text for _, text in tasks]
    start = time.process_time()
    router = Layered().router(StoredStatistics([partial(Evidence.from_bytes, data) for data in stored]))
    ready = time.process_time() - start
    start = time.process_time()
    router.rank(asked[0])
    first = time.process_time() - start
    every = _together(asked)
    start = time.process_time()
    chosen = router.rank(every).task  # enough of them: the bounds are made
    made = time.process_time() - start
    some = asked[:: LAYERED // BATCHES[0]][: BATCHES[0]]
    forms: dict[str, Callable[[], object]] = {
        "batch": lambda: router.rank(_together(some)),
        "alone": lambda: [router.rank(one) for one in some],
    }
    scores = router.scores(_together(some))
    peer = compare(forms, baseline="batch", rounds=ROUNDS // 4)["alone"]
    detail = {
        "seconds to the first text": first,
        "seconds to the bounds": made,
        "right": float((chosen == np.arange(LAYERED)).mean()),
        "same task as by all scores": float((router.rank(_together(some)).task == rank(scores).task).mean()),
    }
    among = f"among {LAYERED} tasks by layers and characters"
    together, alone = (seconds * 1000 / len(some) for seconds in (peer.baseline_seconds, peer.seconds))
    return [
        Result("routing", f"a query of a batch of {len(some)} {among}", together, LAYERED_BAR, "ms", detail),
        Result("routing", f"a query by itself {among}, when the bounds are made", alone, LAYERED_BAR, "ms", {}),
        Result("routing", f"the first query {among}, when the router is ready", first, READY_BAR, "s", {}),
        Result("routing", f"the router {among}, from bytes in memory", ready, READY_BAR, "s", {}),
        Result("routing", "what a task keeps for it", max(map(len, stored)) / 1e6, KEPT_BAR, "MB", {}),
    ]


def _together(asked: Sequence[Query]) -> Query:
    """Texts in one batch."""
    return Query(
        [one.texts[0] for one in asked],
        lambda layers: [np.concatenate([one.features((layer,))[0] for one in asked]) for layer in layers],
    )


def _evidence(task: int) -> tuple[Evidence, Query]:
    """What is kept of one task, with means apart as those of texts of several kinds are, and a text of it."""
    dice = np.random.default_rng(task)
    spread = 1 / np.sqrt(np.arange(1, WIDTH + 1) + 20)
    words = [f"word{number}" for number in dice.integers(0, 3000, 40)]
    texts = [" ".join(dice.choice(words, 16).tolist()) for _ in range(40)]
    layers, features = {}, {}
    for layer in LAYERS:
        own = dice.normal(size=(8, WIDTH)) * spread * 0.4
        centre = 0.7 * dice.normal(size=WIDTH) * spread
        scatter = (ROWS * (np.diag(spread**2) + own.T @ own)).astype(np.float32)
        mean = centre.astype(np.float32)
        layers[layer] = TaskStatistics(np.tile(mean, (CENTROIDS, 1)), mean, scatter, ROWS)
        row = centre + dice.normal(size=WIDTH) * spread + dice.normal(size=8) @ own
        features[layer] = row[None].astype(np.float32)
    asked = Query(texts[:1], lambda layers: [features[layer] for layer in layers])
    return Evidence(layers, of_texts(texts), ROWS), asked


def _query(count: int, size: int) -> Result:
    tasks, queries = _tasks(count), _unit(size).astype(np.float64)
    router = NearestPrototypes(tasks)
    matrix = torch.from_numpy(np.concatenate(tasks))
    rows = torch.from_numpy(queries.astype(np.float32))
    forms: dict[str, Callable[[], object]] = {
        "rank": lambda: router.rank(queries),
        "loop": lambda: np.stack([((queries[:, None] - task) ** 2).sum(2).min(1) for task in tasks], 1).argmin(1),
        "cdist": lambda: torch.cdist(rows, matrix).view(size, count, -1).amin(2).argmin(1),
    }
    peers: dict[str, Comparison] = compare(forms, baseline="rank", rounds=ROUNDS)
    detail = {f"{name}, against it": asdict(peer) for name, peer in peers.items()}
    milliseconds = peers["loop"].baseline_seconds * 1000 / size
    what = f"a query of a batch of {size} among {count * CENTROIDS} prototypes, with its margin"
    return Result("routing", what, milliseconds, QUERY_BAR, "ms", detail)


def _tasks(count: int) -> list[NDArray[np.float32]]:
    return list(_unit(count * CENTROIDS).reshape(count, CENTROIDS, WIDTH))


def _unit(rows: int) -> NDArray[np.float32]:
    found = np.random.default_rng(rows).normal(size=(rows, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
