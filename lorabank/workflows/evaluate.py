"""``eval``: the matrix of the state as trained and of compositions, every cell computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lorabank.bank.blobs import parsed_blob
from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Fitted, Member
from lorabank.core.commands import ADD_TASK, Command
from lorabank.core.config import EvalConfig
from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.core.observer import Observer
from lorabank.core.records import AS_TRAINED, CompositionRecord, DatasetRecord, EvaluationRecord, TaskRecord
from lorabank.core.shelves import COMPOSERS, ROUTERS
from lorabank.core.states import State, grown
from lorabank.data.formats.parquet import from_parquet
from lorabank.data.rows import Rows
from lorabank.evaluation.confusion import KEY as LABELS
from lorabank.evaluation.confusion import LabelScores, label_scores, with_texts
from lorabank.evaluation.environments import environments_of, this_environment
from lorabank.evaluation.matrix import ScoreMatrix
from lorabank.evaluation.paired import RowScores, against
from lorabank.evaluation.routing.summary import abstaining, routing_summary
from lorabank.evaluation.row_scores import stored_rows
from lorabank.evaluation.run import Filled, Subject, fill_cells, wanted_cells
from lorabank.evaluation.scoring import ACCURACY, INVERSE_PERPLEXITY, checked_metric, score_rows
from lorabank.evaluation.text_samples import KEY as TEXTS
from lorabank.evaluation.text_samples import TextScores, metric_of, text_scores
from lorabank.models.bases.loading import resolve_device, resolve_dtype
from lorabank.models.mixing.runtime import Runtime
from lorabank.workflows.asking.bare import BARE
from lorabank.workflows.assemble import RuntimeSettings, evaluation_data, form_of
from lorabank.workflows.audit import audit_routing, check_routed, with_confidence
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import MatrixReport


def evaluate(opened: OpenBank, config: EvalConfig, observer: Observer) -> tuple[MatrixReport, ...]:
    """One report for each subject, or one about a single task."""
    _check_question(config)
    evaluation = _Evaluation(opened, config, observer)
    if grown(evaluation.snapshot.adapter_of(evaluation.tasks[-1].name)):
        _check_shared_head(config)
    if config.task:
        return (evaluation.report_task(config.task, config.state or "now"),)
    if len(set(evaluation.metrics.values())) > 1:
        named = ", ".join(f"{task} by {metric}" for task, metric in evaluation.metrics.items())
        observer.notice(f"tasks are scored by different metrics ({named}): averages mix them")
    from lorabank.workflows.asking.general import general_skills
    from lorabank.workflows.asking.harness import checked_tasks, harness_scores
    from lorabank.workflows.scored import chosen_subjects

    names = chosen_subjects(evaluation.snapshot, config)
    manager = checked_tasks(opened, config)
    general = general_skills(opened, names, config.text, config, observer) if config.text else {}
    harness = harness_scores(opened, names, config, manager, observer) if config.lm_eval else {}
    other = _Evaluation(OpenBank(config.against_bank), config, observer) if config.against_bank else evaluation
    if config.against is not None:
        other.subject(config.against)  # an unknown name should not cost the evaluation first
    reports = [
        replace(evaluation.report(name), general=general.get(name), harness=harness.get(name, ())) for name in names
    ]
    if config.against is None:
        return tuple(reports)
    baseline = other.row_scores(config.against)
    return tuple(
        report
        if other is evaluation and report.subject == config.against
        else replace(report, against=against(config.against, evaluation.row_scores(report.subject), baseline))
        for report in reports
    )


def _check_question(config: EvalConfig) -> None:
    """Refuse what has no one meaning.

    Raises:
        ConfigError: ``--state`` without a task, or a task beside what scores several.
    """
    if config.abstain is not None and abs(config.abstain * 100 - round(config.abstain * 100)) > 1e-9:
        raise ConfigError(
            f"--abstain {config.abstain}: scores are kept for thresholds of two decimals",
            hint=f"--abstain {min(max(config.abstain, 0.01), 0.99):.2f}",
            unchanged="nothing was computed",
        )
    if config.task is None:
        if config.state is not None:
            raise ConfigError(
                f"--state {config.state} applies to one task", hint="add --task NAME", unchanged="nothing was computed"
            )
        return
    others = ("all", "against", "text", "lm_eval", "forgetting_matrix", "forward_transfer", "abstain", "audit")
    beside = [name for name in others if getattr(config, name)]
    beside += ["composition"] if config.compositions else []
    beside += ["head_from"] if config.head_from in ROUTERS else []
    if beside:
        raise ConfigError(
            f"--task scores one task as trained, and --{beside[0].replace('_', '-')} scores something else",
            hint="leave one of them out",
            commands=[Command("eval", "--task", config.task)],
            unchanged="nothing was computed",
        )


def _check_shared_head(config: EvalConfig) -> None:
    """Refuse what asks for a choice among heads, or for the head of a task that is not learnt yet.

    Raises:
        ConfigError: The settings do.
    """
    asked = f"--head-from {config.head_from}" if config.head_from in ROUTERS else "--forward-transfer"
    if config.forward_transfer or config.head_from in ROUTERS:
        raise ConfigError(
            f"{asked} needs a head for each task, and the tasks of this bank share one head",
            hint=f"leave {asked} out",
            unchanged="nothing was computed",
        )


def own_score(opened: OpenBank, task: str, observer: Observer) -> dict[str, Any]:
    """The score of a task as trained, at the last stage, as ``AddTaskResult`` tells it."""
    evaluation = _Evaluation(opened, EvalConfig(), observer)
    record = evaluation.snapshot.task(task)
    cell = evaluation.fill(evaluation.subject(AS_TRAINED), [(record.position, record)]).records[0]
    labels = label_scores(cell, record.labels)
    told = {name: getattr(cell, name) for name in ("metric", "value", "n", "low", "high")}
    return {**told, "labels": labels and evaluation.with_texts(labels, task), "texts": text_scores(cell)}


def scores_beside(
    opened: OpenBank,
    record: CompositionRecord,
    fitted: Fitted,
    members: Sequence[Member],
    device: str,
    observer: Observer,
    *,
    store: bool = True,
) -> tuple[list[dict[str, Any]], list[EvaluationRecord]]:
    """Each member's score in its own state and in a composition that is not stored yet, on its evaluation rows.

    Args:
        opened: The bank.
        record: The composition to be; its objects are not looked at.
        fitted: What was fitted.
        members: Its members.
        device: Where it answers.
        observer: Gets the progress.
        store: Keep the scores of the members' own states in the bank.

    Returns:
        For each member ``task``, ``metric``, ``before``, ``after`` and ``rows``; and the composition's new cells, to
        be stored with it: ``eval`` with its default settings finds them.

    Raises:
        NotFoundError: A task of the bank keeps no evaluation rows.
    """
    from lorabank.workflows.scored import Composed, oracle_of

    evaluation = _Evaluation(opened, EvalConfig(device=device), observer)
    last = members[-1].position
    cells = [(last, evaluation.snapshot.task(member.task)) for member in members]
    composer = COMPOSERS.load(record.mode).load(record, fitted.objects, members, evaluation.runtime)
    composed = Composed(record, composer, evaluation.bank, evaluation.snapshot, members, evaluation.runtime, None)
    own = oracle_of(evaluation.bank, evaluation.snapshot, evaluation.runtime)
    alone = evaluation.fill(own, cells, keep=None if store else lambda new: None)
    new: list[EvaluationRecord] = []
    together = evaluation.fill(composed, cells, keep=new.extend)
    told = [
        {"task": one.task, "metric": one.metric, "before": one.value, "after": shared.value, "rows": one.n}
        for one, shared in zip(alone.records, together.records, strict=True)
    ]
    return told, new


class _Evaluation:
    """One call of ``eval``: the model is loaded when the first cell is missing, and only then."""

    def __init__(self, opened: OpenBank, config: EvalConfig, observer: Observer) -> None:
        self.opened, self.bank = opened, opened.bank
        self.config = config
        self.observer = observer
        self.snapshot: Snapshot = opened.refresh()
        if not self.snapshot.tasks:
            raise NotFoundError("the bank has no task to score", commands=[ADD_TASK], unchanged="nothing was changed")
        self.tasks: tuple[TaskRecord, ...] = self.snapshot.tasks
        self.data: dict[str, DatasetRecord] = evaluation_data(self.snapshot)
        where = resolve_device(config.device)
        self.settings: dict[str, Any] = {
            "dtype": str(resolve_dtype(config.dtype, where)).removeprefix("torch."),
            "device": where.type,
            "batch_size": config.batch_size,
        }
        usual = {task.name: self._usual(task) for task in self.tasks}
        self.metrics = usual if config.metric == "auto" else {task.name: self._metric(task) for task in self.tasks}
        self.settings["metric"] = "auto" if self.metrics == usual else config.metric

    def subject(self, name: str) -> Subject:
        """The subject of a name, on the model that answers."""
        from lorabank.workflows.scored import make_subject

        return make_subject(self.bank, self.snapshot, name, self.runtime, self.config.head_from)

    def runtime(self) -> Runtime:
        """The model with all adapters and heads."""
        settings = RuntimeSettings(
            device=self.config.device,
            dtype=self.config.dtype,
            batch_size=self.config.batch_size,
            reuse_prefix=True,
            max_resident=self.config.max_resident,
        )
        return self.opened.runtime(settings, self.observer.notice)

    def fill(
        self,
        subject: Subject,
        cells: Sequence[tuple[int, TaskRecord]],
        *,
        anew: bool = False,
        keep: Callable[[Sequence[EvaluationRecord]], None] | None = None,
    ) -> Filled:
        """Score what is not stored; or ``anew``, for what a stored cell does not keep. New cells go to the bank."""
        return fill_cells(
            subject,
            cells,
            base=self.snapshot.base.fingerprint,
            data={task: record.sha256 for task, record in self.data.items()},
            rows=self._rows,
            metrics=self.metrics,
            settings=self.settings,
            stored=(lambda keys: {}) if anew else self.bank.evaluations,
            keep=keep or self.bank.add_evaluations,
            prepare=self.runtime,
            computed_with=this_environment(torch.get_num_threads()),
            observer=self.observer,
        )

    def _scoring(self, task: TaskRecord) -> str:
        return form_of(task, self.snapshot.adapter_of(task.name)).scoring

    def _usual(self, task: TaskRecord) -> str:
        """The metric of the task's cells where none is chosen."""
        return metric_of(self._scoring(task), self.snapshot.adapter_of(task.name).metrics)

    def _metric(self, task: TaskRecord) -> str:
        """What was chosen to score the task's cells by, if it can be."""
        return checked_metric(task.name, self._scoring(task), self._usual(task), self.config.metric)

    def _rows(self, task: str) -> Rows:
        blob = self.data[task].blob
        assert blob is not None
        return parsed_blob(self.bank, blob, from_parquet)

    def report(self, name: str) -> MatrixReport:
        """Cells, scalars and routing of one subject."""
        subject = self.subject(name)
        config = self.config
        cells = wanted_cells(self.tasks, matrix=config.forgetting_matrix, forward=config.forward_transfer)
        check_routed(subject, config)
        filled = self.fill(subject, cells)
        if config.abstain is not None:
            filled = with_confidence(subject, self.tasks, filled, partial(self.fill, subject, anew=True))
        oracle = self._oracle() if subject.task_id == "routed" else None
        settings = {**self.settings, "head_from": config.head_from, "average": config.average}
        report = matrix_report(subject, self.tasks, filled, oracle, settings)
        if config.abstain is not None and report.routing is not None:
            abstention = abstaining(self.tasks, filled.records, config.abstain)
            report = replace(report, routing={**report.routing, "abstention": abstention})
        if config.audit:
            report = replace(report, audit=audit_routing(subject, self.snapshot, self._rows, self.observer))
        return report

    def row_scores(self, name: str) -> RowScores:
        """The score of each row after the last task; the rows of a cell that does not keep them are answered again."""
        subject, last = self.subject(name), self.tasks[-1].position
        filled = self.fill(subject, [(last, task) for task in self.tasks])
        found = {}
        for task, cell in zip(self.tasks, filled.records, strict=True):
            if (scores := stored_rows(cell)) is None:
                rows = self._rows(task.name)
                scores = score_rows(cell.metric, subject.answer(last, task, rows), rows.labels).rows
            found[task.name] = scores
        digests = {task: record.sha256 for task, record in self.data.items()}
        return RowScores(found, {cell.task: cell for cell in filled.records}, digests)

    def report_task(self, name: str, state: State) -> MatrixReport:
        """The one cell of a task in a state: what ``predict --task NAME --state STATE`` says to its rows."""
        from lorabank.workflows.scored import AsTrained, oracle_of

        if name == BARE:
            raise ConfigError(
                "the bare base is not a task, so --task none has no rows to be scored on",
                hint="--forward-transfer also scores the untrained base on the rows of every task",
                commands=[Command("eval", "--forward-transfer")],
                unchanged="nothing was computed",
            )
        task, last = self.snapshot.task(name), self.tasks[-1].position
        own = state == "learnt"
        subject = oracle_of(self.bank, self.snapshot, self.runtime) if own else self.subject(AsTrained.name)
        filled = self.fill(subject, [(last, task)])
        (cell,) = filled.records
        if (kept := _kept(task, cell)) and kept not in cell.detail:  # stored before that was kept
            filled = self.fill(subject, [(last, task)], anew=True)
            (cell,) = filled.records
        alone = replace(filled, records=(cell._replace(stage=task.position),))
        settings = {**self.settings, "head_from": "task", "average": self.config.average}
        report = matrix_report(subject, (task,), alone, None, settings)
        labels = {task: self.with_texts(scores, task) for task, scores in report.labels.items()}
        return replace(report, subject=AsTrained.name, mode=AsTrained.mode, state=state, labels=labels)

    def with_texts(self, scores: LabelScores, task: str) -> LabelScores:
        """The same with the texts of the mistakes."""
        return with_texts(scores, self._rows(task).texts) if scores.mistakes else scores

    def _oracle(self) -> Filled:
        from lorabank.workflows.scored import oracle_of

        last = self.tasks[-1].position
        return self.fill(oracle_of(self.bank, self.snapshot, self.runtime), [(last, task) for task in self.tasks])


def _kept(task: TaskRecord, cell: EvaluationRecord) -> str | None:
    """What the detail of a cell holds of how its rows were answered."""
    if task.labels:
        return LABELS if cell.metric == ACCURACY else None
    return None if cell.metric == INVERSE_PERPLEXITY else TEXTS


def matrix_report(
    subject: Subject, tasks: Sequence[TaskRecord], filled: Filled, oracle: Filled | None, settings: dict[str, Any]
) -> MatrixReport:
    """What is told of a subject.

    Args:
        subject: What was scored.
        tasks: The tasks in order.
        filled: Its cells, as many as there are.
        oracle: For a routed subject with a whole last row, the same row with perfect routing.
        settings: ``average`` and what else decided the scores.
    """
    matrix = ScoreMatrix.from_records(tasks, filled.records)
    return MatrixReport(
        subject=subject.name,
        mode=subject.mode,
        task_id=subject.task_id,
        tasks=matrix.tasks,
        values=_listed(matrix.values),
        low=_listed(matrix.low),
        high=_listed(matrix.high),
        counts=[int(count) for count in matrix.counts],
        scalars={key: _plain(value) for key, value in matrix.scalars(settings["average"]).items()},
        computed=filled.computed + (oracle.computed if oracle else 0),
        cached=filled.cached + (oracle.cached if oracle else 0),
        routing=routing_summary(tasks, filled.records, oracle.records) if oracle else None,
        settings=settings,
        metric=matrix.metric,
        environments=environments_of([*filled.records, *(oracle.records if oracle else ())]),
        labels=_labels(tasks, filled),
        texts=_texts(tasks, filled),
    )


def _labels(tasks: Sequence[TaskRecord], filled: Filled) -> dict[str, LabelScores]:
    """How the rows of each label were answered, at the last stage."""
    last, of_task = tasks[-1].position, {task.name: task for task in tasks}
    found = {
        record.task: label_scores(record, of_task[record.task].labels)
        for record in filled.records
        if record.stage == last
    }
    return {task: scores for task, scores in found.items() if scores is not None}


def _texts(tasks: Sequence[TaskRecord], filled: Filled) -> dict[str, TextScores]:
    """How the rows of tasks with free answers were answered, at the last stage."""
    last = tasks[-1].position
    found = {record.task: text_scores(record) for record in filled.records if record.stage == last}
    return {task: scores for task, scores in found.items() if scores is not None}


def _listed(values: Any) -> list[list[float | None]]:
    return [[_plain(value) for value in row] for row in values]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
