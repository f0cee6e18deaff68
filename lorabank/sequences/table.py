"""The table of a sequence: means over orders and seeds with their intervals, under the protocol card."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lorabank.sequences.folder import SequenceFolder, write_text
from lorabank.sequences.protocol import card_lines
from lorabank.sequences.results import Interval, SequenceResult, SequenceRow, SequenceRun
from lorabank.workflows.publish import save_plot
from lorabank.workflows.results import MatrixReport

SCALARS = ("average_accuracy", "learning_accuracy", "backward_transfer", "forgetting", "forward_transfer")
"""Scalars of the table, from the matrix; see `lorabank.evaluation.metrics`."""

TITLES = {
    "average_accuracy": "average accuracy",
    "learning_accuracy": "learning accuracy",
    "backward_transfer": "backward transfer",
    "forgetting": "forgetting",
    "forward_transfer": "forward transfer",
    "oracle": "oracle",
    "routing_accuracy": "routed right",
}


def interval(values: Sequence[float | None]) -> Interval | None:
    """Mean of runs with half of the 95 % t-interval; None where a run lacks the value."""
    there = [value for value in values if value is not None and not math.isnan(value)]
    if not there or len(there) < len(values):
        return None
    if len(there) == 1:
        return Interval(there[0], None, 1)
    from scipy.stats import t  # its import takes a second

    half = float(t.ppf(0.975, len(there) - 1)) * statistics.stdev(there) / math.sqrt(len(there))
    return Interval(statistics.fmean(there), half, len(there))


def table_rows(runs: Sequence[SequenceRun]) -> tuple[SequenceRow, ...]:
    """One row for each strategy and subject, in the order in which they come first."""
    groups: dict[tuple[str, str, str], list[MatrixReport]] = {}
    for run in runs:
        groups.setdefault((run.strategy, run.report.subject, run.report.task_id), []).append(run.report)
    return tuple(_row(strategy, reports) for (strategy, _, _), reports in groups.items())


def _row(strategy: str, reports: Sequence[MatrixReport]) -> SequenceRow:
    first = reports[0]
    scalars = {name: interval([report.scalars[name] for report in reports]) for name in SCALARS}
    for name, key in (("oracle", "oracle"), ("routing_accuracy", "accuracy")):
        scalars[name] = interval([report.routing[key] if report.routing else None for report in reports])
    last = [dict(zip(report.tasks, report.values[-1], strict=True)) for report in reports]
    judged = [scores for report in reports for scores in report.labels.values()]
    return SequenceRow(
        strategy=strategy,
        answers=first.subject,
        mode=first.mode,
        task_id=first.task_id,
        runs=len(reports),
        scalars=scalars,
        tasks={task: interval([scores[task] for scores in last]) for task in first.tasks},
        judged=len(judged),
        at_chance=sum(scores.chance_note is not None for scores in judged),
    )


def chance_warning(rows: Sequence[SequenceRow]) -> str | None:
    """Said once where nothing in the table is clearly above chance; else None."""
    judged = sum(row.judged for row in rows)
    if not judged or sum(row.at_chance for row in rows) < judged:
        return None
    return (
        "EVERY RUN IS AT CHANCE: no score is clearly above that of the most frequent label alone, so the table does "
        "not say which way to train is better"
    )


def markdown(name: str, card: Mapping[str, Any], rows: Sequence[SequenceRow]) -> str:
    """The page: the card, the table, and the scores by task."""
    measured = [key for key in TITLES if any(row.scalars[key] for row in rows)]
    tasks = list(rows[0].tasks) if rows else []
    parts = [f"# {name}", "", "## Protocol", ""]
    parts += [f"- {title}: {text}" if title else f"  - {text}" for title, text in card_lines(card)]
    parts += ["", "## Means over orders and seeds", ""]
    warning = chance_warning(rows)
    parts += [f"**{warning}.**", ""] if warning else []
    parts += [EXPLANATION, ""]
    parts += _grid(rows, [TITLES[key] for key in measured], [[row.scalars[key] for key in measured] for row in rows])
    if any(row.at_chance for row in rows):
        told = (f"{row.strategy}, {row.answers}: {row.chance}" for row in rows if row.at_chance)
        parts += ["", f"Scores of tasks that are not clearly above chance: {'; '.join(told)}."]
    parts += ["", "## Score by task, after the last one", ""]
    parts += _grid(rows, tasks, [[row.tasks[task] for task in tasks] for row in rows])
    return "\n".join(parts) + "\n"


EXPLANATION = (
    "± is half of the 95 % t-interval over the runs (orders × seeds). Task id given: each text is answered with its "
    "own task's head or labels; routed: a router found the task of each text. Oracle: the same with perfect routing."
)


def _grid(rows: Sequence[SequenceRow], titles: Sequence[str], cells: Sequence[Sequence[Interval | None]]) -> list[str]:
    head = ["trained by", "answered by", "task id", "runs", *titles]
    lines = [_line(head), _line(["---", "---", "---", "---:", *["---:"] * len(titles)])]
    for row, values in zip(rows, cells, strict=True):
        lines.append(_line([row.strategy, row.answers, row.task_id, str(row.runs), *map(shown, values)]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shown(value: Interval | None) -> str:
    """``0.812 ± 0.024``; without an interval the mean alone, without a value nothing."""
    if value is None:
        return ""
    return f"{value.mean:.3f}" + (f" ± {value.half:.3f}" if value.half is not None else "")


def write_results(folder: SequenceFolder, settings: Mapping[str, Any], result: SequenceResult) -> SequenceResult:
    """Write ``results.json`` and ``table.md``, and the heat-maps of the first order and seed.

    Args:
        folder: The sequence's folder.
        settings: The content of its file.
        result: What was measured.

    Returns:
        The result with the paths.
    """
    page, document = folder.path / "table.md", folder.path / "results.json"
    write_text(page, markdown(result.name, result.card, result.rows))
    plots = []
    first: dict[tuple[str, str], SequenceRun] = {}
    for run in result.runs:
        first.setdefault((run.strategy, run.report.subject), run)
    for (strategy, subject), run in first.items():
        target = folder.plot(strategy, subject)
        target.parent.mkdir(parents=True, exist_ok=True)
        title = f"{strategy}, {subject}, order {run.order}, seed {run.seed}"
        plots.append(str(save_plot(replace(run.report, subject=title, mode=title), target)))
    found = replace(result, paths=(str(page), str(document), *plots))
    facts = {"card": found.card, "rows": [asdict(row) for row in found.rows], "runs": [asdict(r) for r in found.runs]}
    write_text(document, json.dumps({"name": found.name, "settings": settings, **facts}, indent=2) + "\n")
    return found
