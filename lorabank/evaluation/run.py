"""Filling the matrix: every cell once, and never again while nothing that went in has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import at_work
from lorabank.core.observer import Observer
from lorabank.core.records import EvaluationRecord, TaskRecord
from lorabank.data.rows import Rows
from lorabank.evaluation import confusion, environments, text_samples
from lorabank.evaluation.keys import CellKeys
from lorabank.evaluation.routing import calibration
from lorabank.evaluation.row_scores import row_detail
from lorabank.evaluation.scoring import ACCURACY, Said, score_rows

_LONGEST_UNSTORED = 30.0
"""Seconds of work that a process that is killed may lose."""


class Subject(Protocol):
    """Something that can be scored: the state as trained, or a composition."""

    @property
    def name(self) -> str:
        """``"as-trained"`` or the composition's name."""

    @property
    def mode(self) -> str:
        """How it answers."""

    @property
    def task_id(self) -> Literal["given", "routed"]:
        """Whether the task of each text is given."""

    def identity(self, stage: int, task: TaskRecord) -> tuple[str, ...]:
        """What decides the answers, by digests, for `CellKeys.key`: adapters, weights, router; and the head."""

    def answer(self, stage: int, task: TaskRecord, rows: Rows) -> Said:
        """Answer rows of a task as the model was after position ``stage`` (0: the untrained base)."""

    def routes(self, stage: int, texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64] | None]:
        """Of a routed subject each text's task under its lasting name, and how likely it is, ``[n]`` or None."""


@dataclass(frozen=True)
class Filled:
    """The cells of one subject, and how many of them had to be computed."""

    records: tuple[EvaluationRecord, ...]
    computed: int
    cached: int


def wanted_cells(tasks: Sequence[TaskRecord], *, matrix: bool, forward: bool) -> list[tuple[int, TaskRecord]]:
    """Pairs of stage and task, row by row.

    Args:
        tasks: The tasks in order.
        matrix: The lower triangle, not the last row alone.
        forward: The upper triangle and the row of the untrained base too.
    """
    stages = [task.position for task in tasks] if matrix or forward else [tasks[-1].position]
    cells = [(0, task) for task in tasks] if forward else []
    return cells + [(stage, task) for stage in stages for task in tasks if forward or task.position <= stage]


def fill_cells(
    subject: Subject,
    cells: Sequence[tuple[int, TaskRecord]],
    *,
    base: str,
    data: Mapping[str, str],
    rows: Callable[[str], Rows],
    metrics: Mapping[str, str],
    settings: Mapping[str, Any],
    stored: Callable[[Sequence[str]], Mapping[str, EvaluationRecord]],
    keep: Callable[[Sequence[EvaluationRecord]], None],
    prepare: Callable[[], object],
    computed_with: Mapping[str, Any],
    observer: Observer,
) -> Filled:
    """Score the cells that are not stored yet.

    Args:
        subject: What is scored.
        cells: From `wanted_cells`.
        base: Fingerprint of the base model.
        data: Task name to the digest of its evaluation rows.
        rows: Reads the evaluation rows of a task; asked only for what is computed.
        metrics: Task name to the metric that its rows are scored by.
        settings: What else decides a score: choice of metric, dtype, batch size, device.
        stored: Looks up cells by key.
        keep: Stores new cells in one transaction: those of a stage, or of half a minute where they take longer, and
            when the run is interrupted those that are done.
        prepare: Loads what scoring needs; called before the progress begins, and not when everything is stored.
        computed_with: What a new cell keeps of the environment; no part of its key.
        observer: Gets the progress.
    """
    key_of = CellKeys(base, settings).key
    keys = {(stage, task.name): key_of(subject.identity(stage, task), data[task.name]) for stage, task in cells}
    there = dict(stored(list(keys.values())))
    missing = len({key for key in keys.values() if key not in there})
    records: list[EvaluationRecord] = []
    if missing:
        prepare()
        observer.start(f"scoring {subject.name}", missing)
    done = 0
    with _Keeping(keep) as new:
        for stage, task in cells:
            key = keys[stage, task.name]
            if key not in there:
                metric = metrics[task.name]
                scored = score_cell(subject, stage, task, rows(task.name), metric, key, settings)
                there[key] = scored._replace(detail={**scored.detail, environments.KEY: dict(computed_with)})
                new.add(there[key])
                done += 1
                observer.advance(done, {metric: there[key].value})
            records.append(at(there[key], subject, stage, task))
    if missing:
        observer.finish()
    return Filled(tuple(records), done, len(cells) - done)


class _Keeping:
    """Stores cells, several in a transaction; what is there at the end of the block is stored, however that comes."""

    def __init__(self, keep: Callable[[Sequence[EvaluationRecord]], None]) -> None:
        self._keep = keep
        self._cells: list[EvaluationRecord] = []
        self._stored_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store()

    def add(self, cell: EvaluationRecord) -> None:
        """Take a cell; those of an earlier stage are stored, and what was computed for long."""
        if self._cells and self._cells[0].stage != cell.stage:
            self._store()
        self._cells.append(cell)
        if time.monotonic() - self._stored_at > _LONGEST_UNSTORED:
            self._store()

    def _store(self) -> None:
        cells, self._cells = self._cells, []
        if cells:
            self._keep(cells)
        self._stored_at = time.monotonic()


def score_cell(
    subject: Subject, stage: int, task: TaskRecord, rows: Rows, metric: str, key: str, settings: Mapping[str, Any]
) -> EvaluationRecord:
    """Score of one subject on one task at one stage, with its 95 % interval."""
    started = time.monotonic()
    with at_work(f"{subject.name} on task {task.name!r}"):
        said = subject.answer(stage, task, rows)
        score = score_rows(metric, said, rows.labels)
    detail: dict[str, Any] = {**score.detail, **row_detail(score.rows), "seconds": time.monotonic() - started}
    if said.routed:
        detail["routed"] = {name: said.routed.count(name) for name in dict.fromkeys(said.routed)}
    if said.confidence is not None:
        detail[calibration.KEY] = calibration.detail(said.routed, said.confidence, score.rows.tolist())
    if task.labels and metric == ACCURACY:
        sure = None if said.probabilities is None else said.probabilities.tolist()
        detail[confusion.KEY] = confusion.label_detail(rows.labels, said.answers, sure)
    if said.answers and not task.labels:
        detail[text_samples.KEY] = text_samples.text_detail(rows.texts, rows.labels, said.answers)
    return EvaluationRecord(
        key=key,
        subject=subject.name,
        stage=stage,
        task=task.name,
        metric=metric,
        value=score.value,
        n=len(rows),
        low=score.low,
        high=score.high,
        task_id=subject.task_id,
        settings=dict(settings),
        detail=detail,
    )


def at(record: EvaluationRecord, subject: Subject, stage: int, task: TaskRecord) -> EvaluationRecord:
    """A stored cell where it was asked for. Equal states share one, as do routed tasks with equal rows."""
    return record._replace(subject=subject.name, stage=stage, task=task.name, task_id=subject.task_id)
