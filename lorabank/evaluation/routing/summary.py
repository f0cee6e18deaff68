"""What a report says of a router, from the cells of the last stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lorabank.core.records import EvaluationRecord, TaskRecord
from lorabank.evaluation.routing import calibration
from lorabank.evaluation.routing.calibration import Sure, sure_rows


def routing_summary(
    tasks: Sequence[TaskRecord], records: Sequence[EvaluationRecord], oracle: Sequence[EvaluationRecord]
) -> dict[str, Any]:
    """Routed against oracle accuracy, where the rows of each task went and how sure the router was of it.

    Args:
        tasks: The tasks in order.
        records: The cells of a routed subject; those of the last stage count.
        oracle: The last row with perfect routing.

    Returns:
        As ``routing`` of `lorabank.workflows.results.MatrixReport` has it, without ``abstention``.
    """
    names = [task.name for task in tasks]
    cells = _last_row(tasks, records)
    confusion = [[int(cells[true].detail["routed"].get(task.born, 0)) for task in tasks] for true in names]
    total = sum(map(sum, confusion))
    right = sum(confusion[i][i] for i in range(len(names)))
    kept = all(calibration.KEY in cells[name].detail for name in names)
    sure = sum(_sure(tasks, cells), Sure()) if kept else Sure()
    confidence = sure.share(sure.confidence)
    return {
        "routed": float(np.mean([cells[name].value for name in names])),
        "oracle": float(np.mean([record.value for record in oracle])),
        "accuracy": right / total,
        "confusion": confusion,
        "tasks": names,
        "right": [row[i] / sum(row) for i, row in enumerate(confusion)],
        "confidence": confidence,
        "calibration_error": None if confidence is None else abs(confidence - right / total),
    }


def abstaining(tasks: Sequence[TaskRecord], records: Sequence[EvaluationRecord], threshold: float) -> dict[str, Any]:
    """What is answered at the last stage where texts are set aside whose task is less likely than a threshold.

    Args:
        tasks: As of `routing_summary`.
        records: As of `routing_summary`; each keeps how sure the router was.
        threshold: From 0 to 1, of two decimals.
    """
    cells = _last_row(tasks, records)
    each = _sure(tasks, cells, threshold)
    answered = sum(each, Sure())
    return {
        "threshold": threshold,
        "coverage": answered.rows / sum(cells[task.name].n for task in tasks),
        "routed": answered.share(answered.right),
        "score": answered.share(answered.score),
        "covered": [one.rows / cells[task.name].n for one, task in zip(each, tasks, strict=True)],
    }


def _sure(tasks: Sequence[TaskRecord], cells: Mapping[str, EvaluationRecord], threshold: float = 0.0) -> list[Sure]:
    return [sure_rows(cells[task.name].detail[calibration.KEY], task.born, threshold) for task in tasks]


def _last_row(tasks: Sequence[TaskRecord], records: Sequence[EvaluationRecord]) -> dict[str, EvaluationRecord]:
    return {record.task: record for record in records if record.stage == tasks[-1].position}
