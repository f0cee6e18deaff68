"""What every router of the shelf promises, asked through its method, with features given by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lorabank.compose.routers.base import Router, RouterMethod
from lorabank.compose.routers.query import Query
from lorabank.core.shelves import ROUTERS
from tests.unit.compose.routers.test_routers import CORNERS, around, random_tasks

LAYERS = (2, 4)


def query(rows: np.ndarray) -> Query:
    """The same text in each row, so that features alone tell rows apart, and the same features in each layer."""
    return Query(["the same text"] * len(rows), lambda layers: [rows.astype(np.float32) for _ in layers])


@pytest.fixture(params=sorted(ROUTERS))
def method(request: pytest.FixtureRequest) -> RouterMethod:
    return ROUTERS.load(request.param)()


def over(method: RouterMethod, tasks: Sequence[np.ndarray], clusters: int = 5) -> Router:
    return method.router([kept(method, rows, clusters) for rows in tasks])


def kept(method: RouterMethod, rows: np.ndarray, clusters: int = 5):
    return method.from_samples(query(rows), LAYERS, clusters, 0)


def test_equal_scores_go_to_the_earlier_task(method: RouterMethod) -> None:
    # Every task is the same, at many widths: BLAS rounds the last columns of a product in another way.
    rows = random_tasks((30,), d=37)[0]
    assert not over(method, [rows] * 13).rank(query(random_tasks((50,), d=37, seed=4)[0])).task.any()


def test_a_stage_knows_its_tasks_only(method: RouterMethod) -> None:
    tasks = [around(CORNERS[[i]]) for i in range(3)]
    asked = query(CORNERS[:3] + 0.1)
    for stage, expected in ((1, [0, 0, 0]), (2, [0, 1]), (3, [0, 1, 2])):
        assert over(method, tasks[:stage]).rank(asked).task.tolist()[: len(expected)] == expected


def test_adding_a_task_needs_no_old_rows_and_changes_nothing_that_is_kept(method: RouterMethod) -> None:
    tasks = random_tasks((25, 30, 35))
    stored = [kept(method, rows).to_bytes() for rows in tasks]  # one task after another, its rows forgotten
    asked = query(random_tasks(seed=5)[0])
    found = method.router([method.reads.from_bytes(data) for data in stored]).rank(asked)
    assert [method.reads.from_bytes(data).to_bytes() for data in stored] == stored
    at_once = over(method, tasks).rank(asked)
    np.testing.assert_array_equal(found.task, at_once.task)
    np.testing.assert_allclose(found.margin, at_once.margin, rtol=2e-3)  # 16 bits of what a layer keeps


def test_the_order_of_the_tasks_does_not_matter(method: RouterMethod) -> None:
    tasks = random_tasks((25, 30, 35, 28))
    asked, order = query(random_tasks(seed=5)[0]), [2, 0, 3, 1]
    found, other = over(method, tasks).rank(asked), over(method, [tasks[k] for k in order]).rank(asked)
    np.testing.assert_array_equal(np.array(order)[other.task], found.task)
    np.testing.assert_allclose(other.margin, found.margin, rtol=1e-6, atol=1e-9)


def test_no_texts(method: RouterMethod) -> None:
    assert over(method, [np.eye(3)]).rank(query(np.zeros((0, 3)))).task.shape == (0,)


def test_one_task_is_found_for_every_text(method: RouterMethod) -> None:
    found = over(method, random_tasks((20,))).rank(query(random_tasks(seed=2)[0]))
    assert not found.task.any()
    assert np.isinf(found.margin).all()
    assert found.posterior is None or (found.posterior == 1).all()


@pytest.mark.parametrize("kind", ["kmeans", "gaussian", "layered"])
def test_a_point_between_two_tasks(kind: str) -> None:
    tasks = [around(CORNERS[[3]]), around(CORNERS[[0]])]  # at x = -10 and x = 10
    between = query(np.array([[0.0, 1.0, 0.0], [1e-3, 0.0, 0.0], [-1e-3, 0.0, 0.0]]))
    method = ROUTERS.load(kind)()
    assert over(method, tasks).rank(between).task.tolist() == [0, 1, 0]
    assert over(method, tasks[::-1]).rank(between).task.tolist() == [0, 0, 1]
