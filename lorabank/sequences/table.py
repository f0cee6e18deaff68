"""The table of a sequence: means over orders and seeds with their intervals, under the protocol card."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lorabank.evaluation.plots.tradeoff import pareto_front
from lorabank.sequences.folder import SequenceFolder, write_text
from lorabank.sequences.orders import order_effect
from lorabank.sequences.protocol import card_lines
from lorabank.sequences.results import Interval, OrderEffect, SequenceResult, SequenceRow, SequenceRun
from lorabank.workflows.publish import save_plot

TRADEOFF = "plots/learning-forgetting.png"
"""Where the folder holds the plot of learning against forgetting."""

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
    groups: dict[tuple[str, str, str], list[SequenceRun]] = {}
    for run in runs:
        groups.setdefault((run.strategy, run.report.subject, run.report.task_id), []).append(run)
    return tuple(map(_row, groups.values()))


def _row(runs: Sequence[SequenceRun]) -> SequenceRow:
    reports = [run.report for run in runs]
    first = reports[0]
    scalars = {name: interval([report.scalars[name] for report in reports]) for name in SCALARS}
    for name, key in (("oracle", "oracle"), ("routing_accuracy", "accuracy")):
        scalars[name] = interval([report.routing[key] if report.routing else None for report in reports])
    last = [dict(zip(report.tasks, report.values[-1], strict=True)) for report in reports]
    judged = [scores for report in reports for scores in report.labels.values()]
    return SequenceRow(
        strategy=runs[0].strategy,
        answers=first.subject,
        mode=first.mode,
        task_id=first.task_id,
        runs=len(reports),
        scalars=scalars,
        tasks={task: interval([scores[task] for scores in last]) for task in first.tasks},
        judged=len(judged),
        at_chance=sum(scores.chance_note is not None for scores in judged),
        orders={name: effect for name in SCALARS if (effect := _by_order(runs, name))},
    )


def _by_order(runs: Sequence[SequenceRun], scalar: str) -> OrderEffect | None:
    scores: dict[int, list[float | None]] = {}
    for run in runs:
        scores.setdefault(run.order, []).append(run.report.scalars[scalar])
    return order_effect(scores)


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
    parts += _grid(
        rows, [TITLES[key] for key in measured], [[shown(row.scalars[key]) for key in measured] for row in rows]
    )
    if any(row.at_chance for row in rows):
        told = (f"{row.strategy}, {row.answered}: {row.chance}" for row in rows if row.at_chance)
        parts += ["", f"Scores of tasks that are not clearly above chance: {'; '.join(told)}."]
    parts += ["", "## Score by task, after the last one", ""]
    parts += _grid(rows, tasks, [[shown(row.tasks[task]) for task in tasks] for row in rows])
    parts += _orders(rows)
    if points := [point for row in rows if (point := row.point)]:
        front = "; ".join(points[k].name for k in pareto_front(points))
        parts += ["", "## Learning against forgetting", "", f"![Learning against forgetting]({TRADEOFF})", ""]
        parts += [f"On the Pareto front (nothing here learns as much and forgets less): {front}."]
    return "\n".join(parts) + "\n"


EXPLANATION = (
    "± is half of the 95 % t-interval over the runs (orders × seeds). Task id given: each text is answered with its "
    "own task's head or labels; routed: a router found the task of each text. Oracle: the same with perfect routing."
)


def _orders(rows: Sequence[SequenceRow]) -> list[str]:
    """How the average depends on the order, where there are several."""
    some = [(row, effect) for row in rows if (effect := row.orders.get("average_accuracy"))]
    if not some:
        return []
    titles = ["mean over orders", "spread of orders", "due to the order", "worst order", "best order"]
    return [
        *("", "## Average accuracy by order", "", ORDERS, ""),
        *_grid([row for row, _ in some], titles, [order_cells(effect) for _, effect in some]),
    ]


def order_cells(effect: OrderEffect) -> list[str]:
    """Mean over the orders with its interval, both standard deviations, the worst and the best order."""
    worst, best = (pick(effect.means, key=effect.means.__getitem__) for pick in (min, max))
    due = "" if effect.due_to_order is None else f"{effect.due_to_order:.3f}"
    ends = [f"{effect.means[order]:.3f} (order {order})" for order in (worst, best)]
    return [shown(interval(list(effect.means.values()))), f"{effect.spread:.3f}", due, *ends]


ORDERS = (
    "± is half of the 95 % t-interval over the orders, each the mean of its seeds. Spread: standard deviation of "
    "these means. Due to the order: the same without the chance of the seeds, which takes two seeds or more."
)


def _grid(rows: Sequence[SequenceRow], titles: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    head = ["trained by", "answered by", "task id", "runs", *titles]
    lines = [_line(head), _line(["---", "---", "---", "---:", *["---:"] * len(titles)])]
    for row, values in zip(rows, cells, strict=True):
        lines.append(_line([row.strategy, row.answered, row.task_id, str(row.runs), *values]))
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
    if any(row.point for row in result.rows):
        plots.append(str(result.tradeoff().save(folder.path / TRADEOFF)))
    found = replace(result, paths=(str(page), str(document), *plots))
    facts = {"card": found.card, "rows": [asdict(row) for row in found.rows], "runs": [asdict(r) for r in found.runs]}
    write_text(document, json.dumps({"name": found.name, "settings": settings, **facts}, indent=2) + "\n")
    return found
