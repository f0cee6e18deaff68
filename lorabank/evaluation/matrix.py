"""The matrix of scores: what was measured on which task after which task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lorabank.core.errors import IncompatibleError
from lorabank.core.records import EvaluationRecord, TaskRecord
from lorabank.evaluation.metrics import Values, compute_scalars


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """Scores after each task on each task; the arrays cannot be written to.

    Attributes:
        tasks: T task names in sequence order.
        values: Scores in [0, 1], float64 [T + 1, T]: row 0 is the untrained base, row i the state after task i;
            NaN where nothing was measured (given as nested lists, None is NaN too).
        counts: Evaluation rows of each task, int64 [T]; 0 where no score of the task is known.
        low: Lower ends of the confidence intervals [T + 1, T], or None.
        high: Upper ends, or None.
        metric: What the scores are; several names where tasks are scored by different ones.
    """

    tasks: tuple[str, ...]
    values: Values
    counts: npt.NDArray[np.int64]
    low: Values | None = None
    high: Values | None = None
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        tasks = len(self.tasks)
        self._store("counts", np.array(self.counts, dtype=np.int64), (tasks,))
        for name in ("values", "low", "high"):
            if getattr(self, name) is not None:
                self._store(name, np.array(getattr(self, name), dtype=np.float64), (tasks + 1, tasks))

    def _store(self, name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        if array.shape != shape:
            raise ValueError(
                f"{name} has the shape {list(array.shape)}, but {len(self.tasks)} tasks need {list(shape)}"
            )
        array.flags.writeable = False
        object.__setattr__(self, name, array)

    @classmethod
    def from_records(cls, tasks: Sequence[TaskRecord], records: Iterable[EvaluationRecord]) -> ScoreMatrix:
        """Put stored cells where they belong; the cells that are not there are NaN.

        Args:
            tasks: The tasks of the matrix in sequence order; a record's ``stage`` is a task's position, or 0.
            records: Cells of one subject.

        Returns:
            The matrix with counts and intervals.

        Raises:
            IncompatibleError: The cells were measured in different ways and must not stand in one matrix.
            ValueError: A cell stands twice, or belongs to another task or stage.
        """
        size = len(tasks)
        row_of = {0: 0} | {task.position: row for row, task in enumerate(tasks, start=1)}
        column_of = {task.name: column for column, task in enumerate(tasks)}
        values, low, high = (np.full((size + 1, size), np.nan) for _ in range(3))
        counts = np.zeros(size, dtype=np.int64)
        first: EvaluationRecord | None = None
        of_task: dict[str, EvaluationRecord] = {}
        for record in records:
            first = first or record
            _check_comparable(first, record)
            _check_comparable(of_task.setdefault(record.task, record), record)
            if record.stage not in row_of or record.task not in column_of:
                raise ValueError(f"no cell for task {record.task!r} at stage {record.stage}")
            cell = row_of[record.stage], column_of[record.task]
            if not math.isnan(values[cell]):
                raise ValueError(f"two scores for task {record.task!r} at stage {record.stage}")
            values[cell], low[cell], high[cell] = record.value, record.low, record.high
            counts[cell[1]] = record.n
        metrics = dict.fromkeys(record.metric for record in of_task.values())
        return cls(tuple(column_of), values, counts, low, high, ", ".join(metrics) or cls.metric)

    @property
    def row_labels(self) -> tuple[str, ...]:
        """``base``, ``after 1 sentiment``, ... [T + 1]."""
        return ("base", *(f"after {number} {task}" for number, task in enumerate(self.tasks, start=1)))

    @property
    def measured_rows(self) -> tuple[int, ...]:
        """Indices of the rows in which anything was measured; all rows where nothing was."""
        measured = np.flatnonzero(~np.isnan(self.values).all(axis=1))
        return tuple(map(int, measured)) or tuple(range(len(self.values)))

    def scalars(
        self, average: Literal["macro", "micro"] = "macro", reference: Values | None = None
    ) -> dict[str, float]:
        """Every metric by name; see ``compute_scalars``."""
        return compute_scalars(self.values, self.counts if average == "micro" else None, reference)


def _check_comparable(first: EvaluationRecord, other: EvaluationRecord) -> None:
    """Scores of different subjects or settings, or of one task by different metrics, say nothing about forgetting."""
    for field in ("subject", "metric", "task_id", "settings"):
        if field == "metric" and first.task != other.task:
            continue  # labels of one task beside generated text of another
        one, two = getattr(first, field), getattr(other, field)
        if one != two:
            raise IncompatibleError(
                f"scores with different {field} cannot be in one matrix: {one!r} and {two!r}",
                unchanged="nothing was changed",
            )
