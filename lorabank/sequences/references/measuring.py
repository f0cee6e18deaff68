"""A reference on one order of tasks: trained task after task in memory, scored after each, and then let go.

The scores are what stays. While it runs, its folder also holds the weights after the last task that was learnt
(`lorabank.training.checkpoints`): a run that was stopped scores what it had not scored, resumes with the next task,
and gives what it would have given.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorabank.core.config import EvalConfig, TrainConfig
from lorabank.core.errors import IncompatibleError
from lorabank.core.machine.packages import package_versions
from lorabank.core.observer import Observer
from lorabank.core.records import EvaluationRecord, TaskRecord
from lorabank.data.loading import TaskData
from lorabank.evaluation import environments
from lorabank.evaluation.run import Filled, score_cell, wanted_cells
from lorabank.evaluation.scoring import checked_metric
from lorabank.evaluation.text_samples import metric_of
from lorabank.models.answering.base import AnswerForm
from lorabank.models.bases.open_base import OpenBase
from lorabank.sequences.references.base import Reference
from lorabank.sequences.references.learner import InMemory, Learner
from lorabank.training.checkpoints import newest_checkpoint, read_facts, read_tensors, save_checkpoint
from lorabank.workflows.assemble import answer_form
from lorabank.workflows.evaluate import matrix_report
from lorabank.workflows.results import MatrixReport
from lorabank.workflows.task_data import load_data, recorded_settings, settled, text_facts

_RUN, _WEIGHTS, _HEADS = "run", "weights", "heads"
"""The files of a checkpoint."""


class WholeTraining(NamedTuple):
    """What is told of the training of a task.

    Attributes:
        task: The task.
        device: Where it was trained.
        versions: Of the packages that decide its outcome.
        rows_cut: Training rows that were truncated.
        rows_dropped: Training rows that were left out.
    """

    task: str
    device: str
    versions: dict[str, str]
    rows_cut: int
    rows_dropped: int


@dataclass(frozen=True)
class ReferenceJob:
    """A reference to measure.

    Attributes:
        reference: Which weights are trained.
        base: The base model.
        tasks: Each task with its settings, in order.
        evaluation: How it is scored.
        folder: Where the scores lie, and until they are there the weights.
    """

    reference: Reference
    base: OpenBase
    tasks: Sequence[tuple[str, TrainConfig]]
    evaluation: EvalConfig
    folder: Path


@dataclass
class Progress:
    """What was done so far.

    Attributes:
        trainings: One for each task that was learnt.
        cells: The scores.
        settings: What decides all scores.
        finished: Whether everything is scored; then no weights are kept.
    """

    trainings: list[WholeTraining] = field(default_factory=list)
    cells: list[EvaluationRecord] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """What a folder holds; nothing where there is none."""
        newest = newest_checkpoint(folder)
        if newest is None:
            return cls()
        stored = read_facts(newest, _RUN)
        trainings = [WholeTraining(**one) for one in stored["trainings"]]
        cells = [EvaluationRecord(**one) for one in stored["cells"]]
        return cls(trainings, cells, stored["settings"], stored["finished"])

    def save(self, folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep it with these tensors; what was kept before goes."""
        facts = {
            "trainings": [one._asdict() for one in self.trainings],
            "cells": [one._asdict() for one in self.cells],
            "settings": self.settings,
            "finished": self.finished,
        }
        step = len(self.trainings) + self.finished
        kept = save_checkpoint(folder, step, tensors, {_RUN: facts})
        for other in folder.iterdir():
            if other != kept:
                shutil.rmtree(other, ignore_errors=True)


@dataclass(frozen=True)
class ReferenceRun:
    """What was measured of a reference."""

    report: MatrixReport
    trainings: tuple[WholeTraining, ...]


def check_reference(base: OpenBase, reference: Reference) -> None:
    """Refuse a base whose weights cannot be trained.

    Raises:
        IncompatibleError: They are quantised.
    """
    if base.record.quantisation is not None:
        raise IncompatibleError(
            f"{reference.name} trains the base's own weights, and those of {base.record.name!r} are quantised "
            f"({base.record.quantisation})",
            hint="leave it out of strategies, or use a base in floating point",
            unchanged="nothing was trained",
        )


def measure_reference(job: ReferenceJob, observer: Observer, about: Callable[[str], None]) -> ReferenceRun:
    """Train and score the tasks of a reference that are not done yet.

    Args:
        job: The reference, its tasks and its folder.
        observer: Gets the progress.
        about: Called with a task before it is learnt.

    Raises:
        DivergedError: A loss was not finite; what was scored before is kept.
    """
    progress = Progress.read(job.folder)
    before = len(progress.cells)
    every = [load_data(config, job.base) for _, config in job.tasks]
    records = [
        TaskRecord(name, number, job.base.record.task_type, data.labels, "ready", prompt_template=_text(data))
        for number, ((name, _), data) in enumerate(zip(job.tasks, every, strict=True), start=1)
    ]
    if not progress.finished:
        _Measuring(job, progress, every, records, observer).run(about)
    computed = len(progress.cells) - before
    filled = Filled(tuple(progress.cells), computed, before)
    told = {**progress.settings, "head_from": "task", "average": job.evaluation.average}
    report = matrix_report(InMemory(None, None, (), 0, None), records, filled, None, told)
    return ReferenceRun(report, tuple(progress.trainings))


def _text(data: TaskData) -> str | None:
    return data.prompt_template and str(data.prompt_template)


class _Measuring:
    """A run that begins behind what was done."""

    def __init__(
        self,
        job: ReferenceJob,
        progress: Progress,
        every: Sequence[TaskData],
        records: Sequence[TaskRecord],
        observer: Observer,
    ) -> None:
        self._job, self._progress, self._observer = job, progress, observer
        self._data, self._records = every, records
        job.folder.mkdir(parents=True, exist_ok=True)
        device = job.tasks[0][1].device
        self._learner = Learner(job.reference, job.base, device, job.folder)
        self._forms = [self._form(k) for k in range(len(records))]
        chosen, usual = job.evaluation.metric, self._usual()
        self._metrics = [
            one if chosen == "auto" else checked_metric(record.name, form.scoring, one, chosen)
            for one, record, form in zip(usual, records, self._forms, strict=True)
        ]
        self._heads: list[dict[str, Tensor]] = [{} for _ in records]
        self._progress.settings = {
            "dtype": "float32",
            "device": self._learner.device.type,
            "batch_size": job.evaluation.batch_size,
            "metric": "auto" if self._metrics == usual else chosen,
        }
        self._resume()

    def _form(self, k: int) -> AnswerForm:
        config, data = self._job.tasks[k][1], self._data[k]
        most = self._learner.max_length
        length = config.max_length if most is None else min(config.max_length, most)
        return answer_form(self._records[k], recorded_settings(settled(config, data, length), data))

    def _usual(self) -> list[str]:
        """The metric of each task's cells where none is chosen."""
        pairs = zip(self._forms, self._data, strict=True)
        return [metric_of(form.scoring, text_facts(data)) for form, data in pairs]

    def _resume(self) -> None:
        newest = newest_checkpoint(self._job.folder)
        if newest is None:
            return
        self._learner.restore(read_tensors(newest, _WEIGHTS))
        for key, tensor in read_tensors(newest, _HEADS).items():
            place, _, name = key.partition("|")
            self._heads[int(place)][name] = tensor

    def run(self, about: Callable[[str], None]) -> None:
        """Learn the tasks that are left, and score what is not scored."""
        tasks, progress = self._job.tasks, self._progress
        self._score(len(progress.trainings))
        for number in range(len(progress.trainings), len(tasks)):
            name, config = tasks[number]
            about(name)
            trained = self._learner.learn(config, self._data[number], number, self._observer)
            self._heads[number] = trained.head
            told = str(self._learner.device), package_versions(), trained.rows_cut, trained.rows_dropped
            progress.trainings.append(WholeTraining(name, *told))
            progress.save(self._job.folder, self._tensors())
            self._score(number + 1)
        progress.finished = True
        progress.save(self._job.folder, {})

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        heads = {f"{place}|{name}": one for place, head in enumerate(self._heads) for name, one in head.items()}
        return {_WEIGHTS: self._learner.state(), _HEADS: heads}

    def _score(self, stage: int) -> None:
        """Score the cells of a stage that are not there."""
        config, progress = self._job.evaluation, self._progress
        every = wanted_cells(self._records, matrix=True, forward=config.forward_transfer)
        there = {(cell.stage, cell.task) for cell in progress.cells}
        cells = [task for at, task in every if at == stage and (stage, task.name) not in there]
        if not cells:
            return
        seeds = [config.seed for _, config in self._job.tasks]
        answerer = self._learner.answerer(self._forms, self._heads, seeds, config.batch_size)
        subject = InMemory(self._learner, answerer, self._forms, stage, self._job.reference.name)
        computed_with = environments.this_environment(torch.get_num_threads())
        self._observer.start(f"scoring {self._job.reference.name}", len(cells))
        try:
            for done, task in enumerate(cells, start=1):
                rows, metric = self._data[task.position - 1].eval, self._metrics[task.position - 1]
                cell = score_cell(subject, stage, task, rows, metric, "", progress.settings)
                detail = {**cell.detail, environments.KEY: computed_with}
                progress.cells.append(cell._replace(detail=detail))
                self._observer.advance(done, {metric: cell.value})
        finally:
            self._observer.finish()
