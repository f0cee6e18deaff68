"""``sequence run``: a whole experiment, one bank for each order, strategy and seed; what is done is not done again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import file_word, shell_line
from lorabank.core.errors import DamagedError, LorabankError
from lorabank.core.observer import Observer
from lorabank.sequences.bank import compose_and_measure, interrupted, learn, learnt_tasks
from lorabank.sequences.clock import Clock
from lorabank.sequences.config import Cell
from lorabank.sequences.folder import document_of
from lorabank.sequences.job import SequenceJob
from lorabank.sequences.protocol import Measured, Training, card_lines, trainings_of
from lorabank.sequences.references.measuring import Progress, ReferenceJob, WholeTraining, measure_reference
from lorabank.sequences.results import SequenceCell, SequencePlan, SequenceResult, SequenceRun
from lorabank.sequences.rows import write_tasks
from lorabank.sequences.table import chance_warning, table_rows, write_results


def run_sequence(job: SequenceJob, observer: Observer) -> SequenceResult:
    """Do what is not done yet, and make the table of everything.

    The table is written after each bank, so that a sequence that takes long can be looked at.
    """
    started = time.monotonic()
    job.folder.begin(job.manifest)
    write_tasks(job.config, job.tasks.values(), job.folder.data)
    clock = Clock(job.work(cell) for cell in job.cells)
    measured: list[Measured] = []
    for number, cell in enumerate(job.cells, start=1):
        with _named(cell):
            measured.append(_measured(job, cell, f"[{number}/{len(job.cells)}] {cell}", clock, observer))
        result = _gathered(job, measured, time.monotonic() - started)
    return result


def plan_sequence(job: SequenceJob) -> SequencePlan:
    """What `run_sequence` would do; nothing is written."""
    from lorabank.training.planning import planned_steps

    cells = tuple(_state(job, cell) for cell in job.cells)
    steps = 0
    for cell, state in zip(job.cells, cells, strict=True):
        rows = job.rows_trained(cell)
        steps += sum(planned_steps(rows[task], job.training(cell, task)) for task in state.to_learn)
    card = job.card([Measured(cell, trainings) for cell in job.cells if (trainings := _trained(job, cell))])
    return SequencePlan(job.config.name, str(job.folder.path), cells, steps, card, tuple(card_lines(card)))


def _measured(job: SequenceJob, cell: Cell, head: str, clock: Clock, observer: Observer) -> Measured:
    """Learn, compose and measure one bank, or a reference."""
    reference = job.reference(cell)
    if reference is not None:
        return _reference(reference, cell, job.work(cell), head, clock, observer)
    path = job.folder.bank(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = job.work(cell)
    there = learnt_tasks(path)
    for task in job.config.order(cell):
        if task in there:
            clock.skip(work[task])
            continue
        observer.notice(f"{head}: learning {task}{clock.left()}")
        learn(path, task, job.training(cell, task), job.config.init, observer)
        clock.done(work[task])
    observer.notice(f"{head}: composing and scoring{clock.left()}")
    compositions = job.config.composed(cell.strategy, cell.seed)
    reports = compose_and_measure(path, compositions, job.config.evaluation, observer)
    computed = sum(report.computed for report in reports)
    (clock.done if computed else clock.skip)(work[""])
    snapshot = Bank.open(path).snapshot()
    _check_rows(job, cell, snapshot)
    return Measured(cell, trainings_of(snapshot), reports)


def _reference(
    reference: ReferenceJob, cell: Cell, work: Mapping[str, float], head: str, clock: Clock, observer: Observer
) -> Measured:
    """Train and score a reference, of which the scores alone stay."""
    learning: list[str] = []

    def about(task: str) -> None:
        if learning:
            clock.done(work[learning[-1]])
        observer.notice(f"{head}: learning {task}{clock.left()}")
        learning.append(task)

    found = measure_reference(reference, observer, about)
    for task, _ in reference.tasks:
        if task not in learning:
            clock.skip(work[task])
    if learning:
        clock.done(work[learning[-1]] + work[""])
    else:
        clock.skip(work[""])
    return Measured(cell, _told(found.trainings), (found.report,))


def _told(trainings: Sequence[WholeTraining]) -> tuple[Training, ...]:
    return tuple(Training(one.task, one.device, one.versions, {}, one.rows_cut, one.rows_dropped) for one in trainings)


def _check_rows(job: SequenceJob, cell: Cell, snapshot: Snapshot) -> None:
    """The bank must have learnt the rows that the card names."""
    for name, task in job.tasks.items():
        for split, digest in task.digests.items():
            record = snapshot.dataset(name, "train" if split == "train" else "eval")
            if record is None or record.sha256 != digest:
                raise DamagedError(
                    f"the {split} rows of task {name!r} in {job.folder.bank(cell)} are not those of {job.folder.data}",
                    hint=shell_line("mv", file_word(job.folder.path), file_word(f"{job.folder.path}.old")),
                )


def _gathered(job: SequenceJob, measured: Sequence[Measured], seconds: float) -> SequenceResult:
    runs = tuple(
        SequenceRun(one.cell.order, one.cell.strategy, one.cell.seed, report)
        for one in measured
        for report in one.reports
    )
    card, rows = job.card(measured), table_rows(runs)
    result = SequenceResult(
        name=job.config.name,
        folder=str(job.folder.path),
        card=card,
        card_lines=tuple(card_lines(card)),
        rows=rows,
        runs=runs,
        paths=(),
        seconds=seconds,
        warning=chance_warning(rows),
    )
    return write_results(job.folder, document_of(job.config), result)


def _trained(job: SequenceJob, cell: Cell) -> tuple[Training, ...]:
    """What was trained in a cell before."""
    if (reference := job.reference(cell)) is not None:
        return _told(Progress.read(reference.folder).trainings)
    path = job.folder.bank(cell)
    return trainings_of(Bank.open(path).snapshot()) if Bank.exists(path) else ()


def _reference_state(cell: Cell, order: Sequence[str], folder: Path) -> SequenceCell:
    progress = Progress.read(folder)
    learnt = len(progress.trainings)
    return SequenceCell(
        order=cell.order,
        strategy=cell.strategy,
        seed=cell.seed,
        bank=str(folder),
        learnt=tuple(order[:learnt]),
        to_learn=tuple(order[learnt:]),
        interrupted=None,
        to_compose=(),
        scores=len(progress.cells),
    )


def _state(job: SequenceJob, cell: Cell) -> SequenceCell:
    if (reference := job.reference(cell)) is not None:
        return _reference_state(cell, job.config.order(cell), reference.folder)
    path, order = job.folder.bank(cell), job.config.order(cell)
    there = learnt_tasks(path)
    bank = Bank.open(path) if Bank.exists(path) else None
    composed = {composition.name for composition in bank.snapshot().compositions} if bank else set()
    return SequenceCell(
        order=cell.order,
        strategy=cell.strategy,
        seed=cell.seed,
        bank=str(path),
        learnt=tuple(task for task in order if task in there),
        to_learn=tuple(task for task in order if task not in there),
        interrupted=next((task for task in order if interrupted(path, task)), None),
        to_compose=tuple(
            config.name or config.mode
            for config in job.config.composed(cell.strategy, cell.seed)
            if config.name not in composed
        ),
        scores=len(bank.all_evaluations()) if bank else 0,
    )


@contextmanager
def _named(cell: Cell) -> Iterator[None]:
    """What goes wrong in a cell is told with its name; what is done stays done."""
    try:
        yield
    except LorabankError as error:
        raise error.saying(f"{cell}: {error.message}", unchanged="what was done before is kept") from error
