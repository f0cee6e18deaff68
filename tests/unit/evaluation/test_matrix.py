"""The score matrix: cells in their place, and the table for a terminal."""

from __future__ import annotations

import numpy as np
import pytest

from lorabank.core.errors import IncompatibleError
from lorabank.core.records import EvaluationRecord, TaskRecord
from lorabank.evaluation.matrix import ScoreMatrix

NAN = float("nan")


def task(name: str, position: int) -> TaskRecord:
    return TaskRecord(name=name, position=position, task_type="SEQ_CLS", labels=("a", "b"), state="ready")


def cell(stage: int, name: str, value: float, **changes: object) -> EvaluationRecord:
    record = EvaluationRecord(
        key=f"{stage}-{name}",
        subject="as-trained",
        stage=stage,
        task=name,
        metric="accuracy",
        value=value,
        n=40,
        low=value - 0.1,
        high=value + 0.1,
        task_id="given",
        settings={"batch_size": 64},
        detail={},
    )
    return record._replace(**changes)  # type: ignore[arg-type]


TASKS = (task("first", 1), task("third", 3))  # the second was removed; positions are not given again


def test_records_find_their_cells_by_position() -> None:
    cells = [cell(3, "first", 0.7), cell(1, "first", 0.9), cell(3, "third", 0.8, n=50), cell(0, "third", 0.5, n=50)]
    matrix = ScoreMatrix.from_records(TASKS, cells)
    np.testing.assert_array_equal(matrix.values, [[NAN, 0.5], [0.9, NAN], [0.7, 0.8]])
    np.testing.assert_array_equal(matrix.counts, [40, 50])
    assert matrix.low is not None
    assert matrix.high is not None
    np.testing.assert_allclose(matrix.low[2], [0.6, 0.7])
    np.testing.assert_allclose(matrix.high[1], [1.0, NAN])
    assert matrix.row_labels == ("base", "after 1 first", "after 2 third")


def test_no_records_make_an_empty_matrix() -> None:
    matrix = ScoreMatrix.from_records(TASKS, [])
    assert np.isnan(matrix.values).all()
    assert matrix.measured_rows == (0, 1, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("settings", {"batch_size": 32}),
        ("subject", "other"),
        ("task_id", "routed"),
        ("metric", "f1"),
    ],
)
def test_cells_measured_in_different_ways_do_not_mix(field: str, value: object) -> None:
    with pytest.raises(IncompatibleError, match=f"different {field}"):
        ScoreMatrix.from_records(TASKS, [cell(1, "first", 0.9), cell(3, "first", 0.7, **{field: value})])


def test_a_cell_that_stands_twice_or_nowhere_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="two scores for task 'first' at stage 1"):
        ScoreMatrix.from_records(TASKS, [cell(1, "first", 0.9), cell(1, "first", 0.8)])
    with pytest.raises(ValueError, match="no cell for task 'first' at stage 2"):
        ScoreMatrix.from_records(TASKS, [cell(2, "first", 0.9)])


def test_none_is_missing_and_arrays_are_copies_that_cannot_be_written() -> None:
    given = np.array([[0.1], [0.2]])
    matrix = ScoreMatrix(("a",), given, np.array([3]))
    given[0, 0] = 9
    assert matrix.values[0, 0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        matrix.values[0, 0] = 1
    loose = ScoreMatrix(("a",), [[None], [0.5]], [3])  # type: ignore[arg-type]
    assert np.isnan(loose.values[0, 0])


@pytest.mark.parametrize(("values", "counts"), [([[0.1, 0.2]] * 2, [1, 1]), ([[0.1], [0.2]], [1, 1])])
def test_a_wrong_shape_is_named(values: list[list[float]], counts: list[int]) -> None:
    tasks = ("a", "b") if len(values[0]) == 2 else ("a",)
    with pytest.raises(ValueError, match="has the shape"):
        ScoreMatrix(tasks, values, counts)  # type: ignore[arg-type]


def test_micro_scalars_weigh_by_rows() -> None:
    matrix = ScoreMatrix(("a", "b"), np.array([[NAN, NAN], [0.5, NAN], [0.6, 0.9]]), np.array([10, 30]))
    assert matrix.scalars()["average_accuracy"] == pytest.approx(0.75)
    assert matrix.scalars("micro")["average_accuracy"] == pytest.approx(33 / 40)
