"""The layered router against its equations, computed from the rows in float64."""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest

from lorabank.compose.routers import gaussian
from lorabank.compose.routers.evidence import Evidence
from lorabank.compose.routers.layered import Layered
from lorabank.compose.routers.packing import compressed, expanded
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import rank
from lorabank.core.errors import DamagedError

LAYERS = (2, 4)
WORDS = ["win cash now", "a fine film", "order id 77", "hello @you", "Tür ändern", "call 0800"]


def rows_of(task: int, n: int, d: int = 7) -> tuple[list[str], dict[int, np.ndarray]]:
    """Texts with words of their task, and features around means not far apart."""
    dice = np.random.default_rng(task)
    texts = [" ".join([WORDS[task % len(WORDS)], *dice.choice(WORDS, 2)]) * int(dice.integers(1, 3)) for _ in range(n)]
    root = np.random.default_rng(99).normal(size=(d, d)) + dice.normal(size=(d, d)) / 2
    return texts, {k: (dice.normal(size=(n, d)) @ root + 2 * dice.normal(size=d)).astype(np.float32) for k in LAYERS}


def query(rows: tuple[list[str], dict[int, np.ndarray]], chosen: slice = slice(None)) -> Query:
    return Query(rows[0][chosen], lambda layers: [rows[1][layer][chosen] for layer in layers])


def grams(text: str) -> dict[int, float]:
    padded = " " + text[:400] + " "
    every = [padded[i : i + n] for n in (1, 2, 3) for i in range(len(padded) - n + 1)]
    return {b: math.log1p(c) for b, c in Counter(zlib.crc32(g.encode()) % 2**15 for g in every).items()}


def expected(tasks: list, asked: tuple, shrinkage: float, own: float, weight: float, prior: float) -> np.ndarray:
    """score_t = sum of log densities + weight h_t, as mathematics has them."""
    total = np.zeros((len(asked[0]), len(tasks)))
    for layer in LAYERS:
        each = [rows[layer].astype(np.float64) for _, rows in tasks]
        scatters = [(x - x.mean(0)).T @ (x - x.mean(0)) for x in each]
        within = sum(scatters) / sum(map(len, each))
        for t, x in enumerate(each):
            c = (1 - own) * within + own * scatters[t] / len(x)
            c = (1 - shrinkage) * c + shrinkage * np.trace(c) / len(c) * np.eye(len(c))
            apart = asked[1][layer].astype(np.float64) - x.mean(0)
            total[:, t] -= 0.5 * np.einsum("ij,ij->i", apart @ np.linalg.inv(c), apart) + 0.5 * np.linalg.slogdet(c)[1]
    counts = np.zeros((len(tasks), 2**15))
    for t, (texts, _) in enumerate(tasks):
        for text in texts:
            for bucket, count in grams(text).items():
                counts[t, bucket] += count
    pooled = counts.sum(0) / counts.sum()
    extra = prior * 2**15
    log_p = np.log((counts + extra * (pooled + 1e-8)) / (counts.sum(1, keepdims=True) + extra))
    for i, text in enumerate(asked[0]):
        v = grams(text)
        total[i] += weight * sum(c * log_p[:, b] for b, c in v.items()) / math.sqrt(sum(v.values()))
    return total


TASKS = [rows_of(t, 30 + 5 * t) for t in range(5)]
ASKED = rows_of(77, 40)


@pytest.mark.parametrize("settings", [(0.1, 0.1, 3.0, 0.1), (0.4, 0.0, 1.0, 0.5), (0.2, 1.0, 0.0, 0.1)])
def test_scores_are_the_sum_of_log_densities_and_of_naive_bayes(settings: tuple[float, ...]) -> None:
    found = Layered(*settings).router([Evidence.fit(query(t), LAYERS, 2, 0) for t in TASKS]).scores(query(ASKED))
    wanted = expected(TASKS, ASKED, *settings)
    apart = [scores - scores.mean(1, keepdims=True) for scores in (found, wanted)]  # one covariance for all: linear
    np.testing.assert_allclose(*apart, rtol=1e-6, atol=1e-5)


def test_what_was_stored_gives_the_same_scores_up_to_16_bits() -> None:
    every = [Evidence.from_bytes(Evidence.fit(query(t), LAYERS, 2, 0).to_bytes()) for t in TASKS]
    found = Layered().router(every).scores(query(ASKED))
    np.testing.assert_allclose(found, expected(TASKS, ASKED, 0.1, 0.1, 3.0, 0.1), rtol=3e-4)


def test_rows_are_taken_out_as_if_they_had_never_been_there() -> None:
    rows = rows_of(3, 50)
    gone, stays = slice(0, 50, 3), [i for i in range(50) if i % 3]
    left = Evidence.fit(query(rows), LAYERS, 2, 0).without(query(rows, gone))
    never = Evidence.fit(query(([rows[0][i] for i in stays], {k: x[stays] for k, x in rows[1].items()})), LAYERS, 2, 0)
    assert left.n == never.n == 33
    for layer in LAYERS:
        np.testing.assert_allclose(left.layers[layer].mean, never.layers[layer].mean, atol=1e-6)
        scale = np.abs(never.layers[layer].scatter).max()
        np.testing.assert_allclose(left.layers[layer].scatter / scale, never.layers[layer].scatter / scale, atol=1e-6)
    np.testing.assert_array_equal(left.grams.buckets, never.grams.buckets)
    np.testing.assert_allclose(left.grams.counts, never.grams.counts, atol=1e-6)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("texts", [3, 60])
def test_among_many_tasks_choice_margin_and_posterior_are_those_of_all_scores(
    monkeypatch: pytest.MonkeyPatch, large: bool, texts: int
) -> None:
    monkeypatch.setattr(gaussian, "_BOUNDS", 200)
    monkeypatch.setattr(gaussian, "_TRIANGLE_BYTES", 0 if large else 1 << 26)
    router = Layered(temperature=1.0).router([Evidence.fit(query(rows_of(t, 30)), LAYERS, 2, 0) for t in range(40)])
    asked = [rows_of(t, texts) for t in range(90, 93)]
    for one in asked:  # by screening first, and by bounds that last
        found, scores = router.rank(query(one)), router.scores(query(one))
        every = rank(scores)
        np.testing.assert_array_equal(found.task, every.task)
        np.testing.assert_allclose(found.margin, every.margin, rtol=1e-9, atol=1e-9)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(found.posterior, shares / shares.sum(1, keepdims=True), atol=40 * math.exp(-5))


@pytest.mark.parametrize("d", [1, 2, 9])
def test_a_matrix_of_16_bits_is_near(d: int) -> None:
    root = np.random.default_rng(d).normal(size=(d, 2 * d)) * np.geomspace(1, 1e3, d)[:, None]
    matrix = root @ root.T
    roots = np.sqrt(matrix.diagonal())
    apart = np.abs(expanded(*compressed(matrix)) - matrix) / np.outer(roots, roots)
    assert apart.max() < 1.6e-5
    assert not expanded(*compressed(np.zeros((d, d)))).any()


@pytest.mark.parametrize("data", [b"", b"broken", Evidence.fit(query(TASKS[0]), LAYERS, 2, 0).to_bytes()[:-5]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedError, match="routing statistics"):
        Evidence.from_bytes(data)
