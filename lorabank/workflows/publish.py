"""What is made of measured values: gates, plots, tables and the report. No model runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.times import now
from lorabank.bank.failures import reported
from lorabank.core.commands import file_word, shell_line
from lorabank.core.errors import LorabankError, NotFoundError
from lorabank.core.records import CompositionRecord, EvaluationRecord
from lorabank.core.shelves import METRICS, ROUTERS
from lorabank.evaluation import thresholds as gating
from lorabank.models.facts.curves import ROLE, LearningCurve
from lorabank.workflows.results import MatrixReport

if TYPE_CHECKING:
    from lorabank.bank.snapshot import Snapshot
    from lorabank.evaluation.paired import RowScores
    from lorabank.evaluation.reporting.compared import Against
    from lorabank.evaluation.run import Filled, Subject


MACRO_F1 = "macro_f1"
"""A metric of gates that no matrix has: it is not a mean over rows."""


def check_gates(reports: Sequence[MatrixReport], gates: Sequence[str]) -> tuple[gating.GateResult, ...]:
    """Check every gate on every report; all gates are parsed first."""
    parsed = [gating.parse_gate(gate, (*METRICS, MACRO_F1)) for gate in gates]
    return tuple(result for report in reports for result in gating.check_gates(parsed, gated(report)))


def gated(report: MatrixReport) -> dict[str, float | None]:
    """What gates are checked on: the scalars, and the mean macro-F1 of the tasks with labels after the last stage."""
    found = [scores.macro_f1 for scores in report.labels.values()]
    return {**report.scalars, MACRO_F1: sum(found) / len(found) if found else None}


def save_plot(report: MatrixReport, path: str | Path) -> Path:
    """Draw a matrix as ``.png`` or ``.svg``; of a report about one task with labels, its confusion matrix."""
    with writing(Path(path)):
        return report.plot().save(path)


def save_curve(path: str | Path, name: str, target: str | Path) -> Path:
    """Draw how a task was trained as ``.png`` or ``.svg``.

    Raises:
        NotFoundError: There is no record of a training.
    """
    from lorabank.evaluation.plots.learning import learning_plot
    from lorabank.workflows.show import curve_of, find_named

    bank = Bank.open(path)
    snapshot = bank.snapshot()
    record = find_named(snapshot, name)
    curve = None if isinstance(record, CompositionRecord) else curve_of(bank, snapshot.adapter_of(name))
    if curve is None or not curve.steps:
        raise NotFoundError(
            f"no training of {name!r} is recorded: it is a composition, was imported, or is older than such records",
            hint="leave --curve out to see what is known of it",
            unchanged="nothing was written",
        )
    with writing(Path(target)):
        return learning_plot(curve, name).save(target)


def save_csv(report: MatrixReport, path: str | Path) -> Path:
    """Write a matrix as CSV."""
    from lorabank.evaluation.plots.heatmap import write_csv

    with writing(Path(path)):
        return write_csv(report.matrix(), path)


def report(path: str | Path, target: Path) -> Path:
    """Write the HTML report of a bank; what was not measured is not in it."""
    from lorabank import __version__
    from lorabank.evaluation.reporting.bank import MOST_CURVES, render_report
    from lorabank.evaluation.reporting.subjects import title_of

    bank = Bank.open(path)
    snapshot = bank.snapshot()
    made = now()
    found = stored_results(bank, snapshot)
    measured = with_mistakes(bank, snapshot, [one.report for one in found])
    tests = paired_with_first([(title_of(one.report), one) for one in found])
    curves, more = newest_curves(bank, snapshot, MOST_CURVES)
    page = render_report(
        snapshot, measured, tests=tests, curves=curves, more_curves=more, created_at=made, version=__version__
    )
    with writing(target):
        target.write_text(page, encoding="utf-8")
    return target


def newest_curves(bank: Bank, snapshot: Snapshot, most: int) -> tuple[dict[str, LearningCurve], bool]:
    """Task to how it was trained, of the last tasks of which that is recorded, and whether it is of others too.

    A record that cannot be read is left out; no more are read than are given.
    """
    from lorabank.workflows.show import curve_of

    found: dict[str, LearningCurve] = {}
    for task in reversed(snapshot.tasks):
        adapter = snapshot.adapter_of(task.name)
        if len(found) == most and ROLE in adapter.objects:
            return found, True
        with suppress(LorabankError):
            if len(found) < most and (curve := curve_of(bank, adapter)) is not None:
                found[task.name] = curve
    return found, False


def with_mistakes(bank: Bank, snapshot: Snapshot, reports: Sequence[MatrixReport]) -> list[MatrixReport]:
    """The same with the texts of the worst mistakes; of evaluation rows that cannot be read there are none."""
    from lorabank.evaluation.confusion import with_texts
    from lorabank.workflows.assemble import read_rows_of

    texts: dict[str, Sequence[str]] = {}
    for task in {task for report in reports for task, scores in report.labels.items() if scores.mistakes}:
        with suppress(LorabankError):
            rows = read_rows_of(bank, snapshot, task, "eval")
            texts[task] = rows.texts if rows else ()
    return [
        replace(report, labels={task: with_texts(one, texts.get(task, ())) for task, one in report.labels.items()})
        for report in reports
    ]


class Stored(NamedTuple):
    """What is stored of a subject.

    Attributes:
        report: What ``evaluate`` would say.
        rows: The scores of its rows after the last task; None where a cell keeps none, as of scores between right and
            wrong.
    """

    report: MatrixReport
    rows: RowScores | None


def paired_with_first(results: Sequence[tuple[str, Stored]]) -> list[Against]:
    """Each named result after the first tested against the first on the same rows; none without rows of the first."""
    from lorabank.evaluation.paired import against
    from lorabank.evaluation.reporting.compared import Against

    if len(results) < 2 or results[0][1].rows is None:
        return []
    (baseline, first), *others = results
    assert first.rows is not None
    tests = []
    for name, one in others:
        paired, refused = None, "the scores of its single rows are not kept"
        if one.rows is not None:
            try:
                paired, refused = against(baseline, one.rows, first.rows).overall, "its tasks have different metrics"
            except LorabankError as error:
                refused = error.message
        tests.append(Against(name, paired, "row", refused))
    return tests


def stored_reports(bank: Bank, snapshot: Snapshot) -> list[MatrixReport]:
    """The reports of `stored_results`."""
    return [one.report for one in stored_results(bank, snapshot)]


def stored_results(bank: Bank, snapshot: Snapshot) -> list[Stored]:
    """What ``evaluate`` would say of every subject, from the stored cells alone.

    A cell is found by its key, as ``evaluate`` finds it: what was measured before a composition was replaced, or under
    other settings than its neighbours, does not count. Where a subject was measured under several settings, those
    with the most cells are taken, of equal ones the newest.
    """
    stored = {record.key: record for record in bank.all_evaluations()}
    if not stored or not snapshot.tasks:
        return []
    # Subjects know compositions, and compositions know torch: loaded only where there is something to show.
    from lorabank.workflows.scored import AsTrained, make_subject, oracle_of

    settings = _distinct([record.settings for record in stored.values()])
    oracle = oracle_of(bank, snapshot, _no_model)
    reports = []
    for name in (AsTrained.name, *(composition.name for composition in snapshot.compositions)):
        for head in ("auto", *ROUTERS):
            subject = make_subject(bank, snapshot, name, _no_model, head)
            found = _best_report(snapshot, subject, oracle, settings, stored, head)
            if found:
                reports.append(found)
            if head == "auto" and subject.task_id == "routed":
                break  # it routes by itself
    return reports


def _best_report(
    snapshot: Snapshot,
    subject: Subject,
    oracle: Subject,
    settings: Sequence[dict[str, Any]],
    stored: Mapping[str, EvaluationRecord],
    head: str,
) -> Stored | None:
    from lorabank.workflows.evaluate import matrix_report

    last = snapshot.tasks[-1].position
    filled = [(_stored_cells(subject, snapshot, chosen, stored), chosen) for chosen in settings]
    cells, chosen = max(filled, key=lambda pair: pair[0].cached)
    final = [record for record in cells.records if record.stage == last]
    if not final:
        return None
    perfect = None
    if subject.task_id == "routed" and len(final) == len(snapshot.tasks):
        perfect = _stored_cells(oracle, snapshot, chosen, stored, stages=(last,))
        perfect = perfect if perfect.cached == len(final) else None
    found = matrix_report(subject, snapshot.tasks, cells, perfect, {**chosen, "head_from": head, "average": "macro"})
    named = found if head == "auto" else replace(found, mode=f"{found.mode}, head by the {head} router")
    return Stored(named, _rows(snapshot, final))


def _rows(snapshot: Snapshot, cells: Sequence[EvaluationRecord]) -> RowScores | None:
    from lorabank.evaluation.paired import RowScores
    from lorabank.evaluation.row_scores import stored_rows
    from lorabank.workflows.assemble import evaluation_data

    scores = {cell.task: rows for cell in cells if (rows := stored_rows(cell)) is not None}
    if len(scores) < len(snapshot.tasks):
        return None
    data = evaluation_data(snapshot)
    return RowScores(scores, {cell.task: cell for cell in cells}, {task: data[task].sha256 for task in scores})


def _stored_cells(
    subject: Subject,
    snapshot: Snapshot,
    settings: dict[str, Any],
    stored: Mapping[str, EvaluationRecord],
    stages: Sequence[int] | None = None,
) -> Filled:
    """The cells of a subject that are there, under its name."""
    from lorabank.evaluation.keys import CellKeys
    from lorabank.evaluation.run import Filled, at, wanted_cells
    from lorabank.workflows.assemble import evaluation_data

    data, key_of = evaluation_data(snapshot), CellKeys(snapshot.base.fingerprint, settings).key
    records = []
    for stage, task in wanted_cells(snapshot.tasks, matrix=True, forward=True):
        if stages is None or stage in stages:
            key = key_of(subject.identity(stage, task), data[task.name].sha256)
            if key in stored:
                records.append(at(stored[key], subject, stage, task))
    return Filled(tuple(records), computed=0, cached=len(records))


def _distinct(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each once, newest first."""
    found: list[dict[str, Any]] = []
    for one in reversed(settings):
        if one not in found:
            found.append(one)
    return found


def require_folder(path: Path) -> None:
    """Refuse a file whose folder does not exist."""
    if not path.parent.is_dir():
        raise NotFoundError(
            f"there is no folder {path.parent}",
            hint=shell_line("mkdir", "-p", file_word(path.parent)),
            unchanged="nothing was written",
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong while a file is written is told with its name; its folder must exist."""
    require_folder(path)
    with reported(path):
        yield


def _no_model() -> NoReturn:
    raise AssertionError("a report runs no model")
