"""Probabilities of tasks, from a router that does not know the kept rows, against fits without them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lorabank.compose.base import Member
from lorabank.compose.known_tasks import KnownTask
from lorabank.compose.posterior import calibrate, kept_posterior, task_posterior
from lorabank.compose.routers.evidence import Evidence
from lorabank.compose.routers.layered import Layered
from lorabank.compose.routers.query import Query
from lorabank.models.answering.base import AnswerForm

FORM = AnswerForm(("no", "yes"), 66)
WORDS = ["win cash now", "a fine film", "order id 77"]
KEPT = 12
LIKELY = Layered()
BLIND = Layered(gram_weight=0.0)
"""Takes some of the kept rows for another task's, where ``LIKELY`` tells all of them apart."""


class FakeRuntime:
    """Features of a text are noise that the text itself seeds, around what its first letter says."""

    routing_layers = (2, 4)

    def layer_features(self, texts, max_length: int, layers) -> list[np.ndarray]:
        return [np.array([self._one(text, layer) for text in texts], np.float32).reshape(-1, 5) for layer in layers]

    def _one(self, text: str, layer: int) -> np.ndarray:
        noise = np.random.default_rng([layer, *text.encode()]).normal(size=5)
        return noise + 0.7 * np.random.default_rng([layer, ord(text[0])]).normal(size=5)


def texts_of(task: int, n: int) -> list[str]:
    return [f"{WORDS[task]} {WORDS[(task + i) % 3]} {i}" for i in range(n)]


def query(texts) -> Query:
    return Query(texts, lambda layers: FakeRuntime().layer_features(texts, 66, layers))


def members(rows: int = 60, kept: int = KEPT, stored: bool = True) -> list[Member]:
    found = []
    for task in range(3):
        texts = texts_of(task, rows)
        data = Evidence.fit(query(texts), (2, 4), 2, 0).to_bytes()
        sample = tuple(texts[:: rows // kept][:kept]) if kept else ()
        found.append(
            Member(f"t{task}", task + 1, "xyz"[task], ("xyz"[task],), task, FORM, lambda: None, 2, texts=sample,
                   targets=("no",) * len(sample), facts={"routing": f"{task}"} if stored else {},
                   read_fact=lambda _, data=data: data)
        )  # fmt: skip
    return found


def without_kept(rows: int = 60) -> list[Evidence]:
    step = rows // KEPT
    return [
        Evidence.fit(query([t for i, t in enumerate(texts_of(k, rows)) if i % step]), (2, 4), 2, 0) for k in range(3)
    ]


def shares(scores: np.ndarray, temperature: float) -> np.ndarray:
    found = np.exp((scores - scores.max(1, keepdims=True)) / temperature)
    return found / found.sum(1, keepdims=True)


def expected_scores(method: Layered = LIKELY) -> np.ndarray:
    texts = [text for member in members() for text in member.texts]
    return method.router(without_kept()).scores(query(texts))


def test_kept_rows_are_judged_by_a_router_that_was_fitted_without_them() -> None:
    temperature = float(_calibration()["temperature"])
    found = kept_posterior(members(), FakeRuntime())
    assert found.shape == (3 * KEPT, 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, shares(expected_scores(), temperature), atol=2e-3)  # 16 bits of what is stored


def _calibration(method: Layered = LIKELY) -> dict:
    every = members()
    tasks = [KnownTask(m, lambda m=m: Evidence.from_bytes(m.read_fact(""))) for m in every]
    return calibrate(method, tasks, FakeRuntime)


def test_the_temperature_minimises_the_loss_of_the_kept_rows() -> None:
    scores, own = expected_scores(BLIND), np.repeat(np.arange(3), KEPT)
    best = minimize_scalar(
        lambda t: -np.log(shares(scores, t)[np.arange(len(own)), own]).mean(), bounds=(0.1, 100), method="bounded"
    )
    assert 0.2 < best.x < 50
    found = _calibration(BLIND)
    assert found["temperature"] == pytest.approx(best.x, rel=0.02)
    right = scores.argmax(1) == own
    assert found["routed"] == pytest.approx(right.mean())
    assert found["rows"] == 3 * KEPT
    confidence = shares(scores, found["temperature"]).max(1).mean()
    assert found["calibration_error"] == pytest.approx(abs(confidence - right.mean()), abs=2e-3)


def test_no_temperature_is_fitted_where_all_kept_rows_are_told_apart() -> None:
    """The loss would fall down to the lower bound, with which every text is a sure one."""
    found = _calibration(LIKELY)
    assert found["routed"] == pytest.approx(1)
    assert found["temperature"] == 5.0


def test_other_texts_are_judged_by_all_that_is_known() -> None:
    texts = texts_of(1, 5) + texts_of(2, 4)
    every = [Evidence.from_bytes(member.read_fact("")) for member in members()]
    scores = Layered().router(every).scores(query(texts))
    found = task_posterior(members(), FakeRuntime(), texts)
    np.testing.assert_allclose(found, shares(scores, _calibration()["temperature"]), atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1)


def test_without_kept_rows_the_temperature_is_the_safe_one() -> None:
    texts = texts_of(1, 5)
    scores = Layered().router([Evidence.from_bytes(m.read_fact("")) for m in members()]).scores(query(texts))
    np.testing.assert_allclose(task_posterior(members(kept=0), FakeRuntime(), texts), shares(scores, 5.0), atol=1e-9)
    assert kept_posterior(members(kept=0), FakeRuntime()).shape == (0, 3)


def test_what_an_older_bank_does_not_keep_is_made_of_samples_with_more_shrinkage() -> None:
    old, texts = members(kept=30, stored=False), texts_of(1, 5)
    scores = Layered(0.3).router([Evidence.fit(query(m.texts), (2, 4), 2, 0) for m in old]).scores(query(texts))
    found = task_posterior(old, FakeRuntime(), texts)
    np.testing.assert_array_equal(found.argmax(1), scores.argmax(1))
    logs = np.log(found) - np.log(found[:, :1])
    np.testing.assert_allclose(logs / logs[0, 1], (scores - scores[:, :1]) / (scores[0, 1] - scores[0, 0]), rtol=1e-6)


def test_most_of_a_task_s_rows_may_be_kept() -> None:
    found = kept_posterior(members(rows=16, kept=16), FakeRuntime())
    np.testing.assert_allclose(found.sum(1), 1)
