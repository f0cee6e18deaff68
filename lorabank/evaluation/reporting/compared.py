"""Results side by side: one table with bars, one chart of the averages, and the table as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from lorabank.components.charts import Line
from lorabank.components.frame import plain
from lorabank.components.markup import element, head_cell, row_head, table
from lorabank.components.tables import bar, score_table
from lorabank.core.escaping import formula_safe, safe
from lorabank.evaluation.metrics import Values, average_through_time
from lorabank.evaluation.paired import Paired
from lorabank.evaluation.reporting.measured import Measured
from lorabank.evaluation.reporting.words import ROUTED_RIGHT, metric_name, with_meaning

SUMMARY = ("average_accuracy", "learning_accuracy", "backward_transfer", "forgetting", "forward_transfer")
"""Metrics of the table, in its order; `ROUTED` stand behind them."""

_ROUTED = ("oracle", ROUTED_RIGHT)


class Estimate(NamedTuple):
    """A mean over runs with half of its 95 % interval, None of a single run."""

    mean: float
    half: float | None = None


@dataclass(frozen=True)
class Result:
    """One way to train and to answer.

    Attributes:
        name: What it is called.
        task_id: ``"given"`` or ``"routed"``.
        metric: What its scores are.
        runs: Banks that it was measured in.
        scalars: Metric to its value; None where it is missing.
        tasks: Task to its score after the last task.
        through: The average over the tasks learnt so far after each task ``[runs, T]``; NaN where it is missing.
    """

    name: str
    task_id: str
    metric: str
    runs: int
    scalars: Mapping[str, Estimate | None]
    tasks: Mapping[str, Estimate | None]
    through: Values = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def line(self) -> Line:
        """Its averages through time; of several runs their mean in a band, which is the 95 % t-interval."""
        stages = list(range(1, self.through.shape[1] + 1))
        means = self.through.mean(axis=0) if len(self.through) else np.empty(0)
        if len(self.through) < 2:
            return Line(self.name, stages, means.tolist())
        from scipy.stats import t  # its import takes a second

        runs = len(self.through)
        half = float(t.ppf(0.975, runs - 1)) * self.through.std(axis=0, ddof=1) / math.sqrt(runs)
        low, high = np.clip(means - half, 0, 1), np.clip(means + half, 0, 1)
        return Line(self.name, stages, means.tolist(), low.tolist(), high.tolist())


class Against(NamedTuple):
    """A result tested against the baseline.

    Attributes:
        name: The result.
        paired: The test; None where there is none.
        unit: What is paired: ``"row"`` or ``"run"``.
        refused: Why there is no test.
    """

    name: str
    paired: Paired | None
    unit: str
    refused: str = ""


def result_of(one: Measured, name: str) -> Result:
    """A measured subject as a result of a single run."""
    scalars = {key: _estimate(one.scalars.get(key)) for key in SUMMARY}
    if one.routing:
        scalars |= {"oracle": _estimate(one.routing["oracle"]), ROUTED_RIGHT: _estimate(one.routing["accuracy"])}
    last = {task: _estimate(value) for task, value in zip(one.tasks, one.values[-1], strict=True)}
    values = np.array(one.values, dtype=np.float64)
    through = average_through_time(values)[None]
    return Result(name, one.task_id, one.metric, 1, scalars, last, through)


def summary_table(results: Sequence[Result]) -> Markup:
    """A row for each result: the average as a bar, and every metric that one of them has."""
    names = columns(results)
    several = any(one.runs > 1 for one in results)
    head = [head_cell("result"), head_cell("task id"), head_cell("metric")]
    head += [head_cell("runs", numeric=True)] if several else []
    head += [element("th", "average, from 0 to 1", scope="col")]
    head += [element("th", with_meaning(name), scope="col", class_="n") for name in names]
    rows = []
    for one in results:
        cells = [row_head(one.name), element("td", one.task_id), element("td", plain(one.metric))]
        cells += [element("td", one.runs, class_="n")] if several else []
        average = one.scalars.get(SUMMARY[0])
        ends = (average.mean - average.half, average.mean + average.half) if average and average.half else (None, None)
        cells.append(element("td", bar(average.mean if average else None, *ends)))
        cells += [element("td", shown(one.scalars.get(name)), class_="n") for name in names]
        rows.append(element("tr", *cells))
    return table("What answered, and how well, after the last task", Markup("").join(head), Markup("").join(rows))


def by_task_table(results: Sequence[Result]) -> Markup:
    """The score of each result on each task after the last one, in colour."""
    tasks = list(dict.fromkeys(task for one in results for task in one.tasks))
    values = [[_mean(one.tasks.get(task)) for task in tasks] for one in results]
    return score_table(
        [one.name for one in results], tasks, values, caption="Score on each task after the last one", corner="result"
    )


def columns(results: Sequence[Result]) -> list[str]:
    """The metrics that at least one result has; the first is always there."""
    return [
        name
        for name in (*SUMMARY, *_ROUTED)
        if name == SUMMARY[0] or any(one.scalars.get(name) is not None for one in results)
    ]


def comparable(results: Sequence[Result]) -> bool:
    """Whether the averages that there are were taken over the same tasks, scored by the same metrics."""
    some = [one for one in results if one.scalars.get(SUMMARY[0]) is not None]
    return len({(frozenset(one.metric.split(", ")), frozenset(one.tasks)) for one in some}) < 2


def shown(value: Estimate | None, decimals: int = 3) -> str:
    """``0.812 ± 0.024``; without an interval the mean alone, and a dash without a value."""
    if value is None:
        return "–"
    return f"{value.mean:z.{decimals}f}" + (f" ± {value.half:.{decimals}f}" if value.half is not None else "")


def as_csv(results: Sequence[Result]) -> str:
    """The table with every task, means and halves of the intervals in columns of their own; missing ones are empty."""
    names, tasks = columns(results), list(dict.fromkeys(task for one in results for task in one.tasks))
    head = ["result", "task_id", "metric", "runs"]
    head += [f"{name}{end}" for name in (*names, *(f"score.{task}" for task in tasks)) for end in ("", ".half")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(formula_safe, head))
    for one in results:
        found = [*(one.scalars.get(name) for name in names), *(one.tasks.get(task) for task in tasks)]
        numbers = [number for value in found for number in (value or (None, None))]
        cells = ["" if number is None else repr(float(number)) for number in numbers]
        writer.writerow([*map(formula_safe, (one.name, one.task_id, one.metric)), one.runs, *cells])
    return text.getvalue()


def as_latex(results: Sequence[Result]) -> str:
    """The table as a ``tabular`` of booktabs, with the best average in bold where they are of the same tasks."""
    names = columns(results)
    averages = [one.scalars.get(SUMMARY[0]) for one in results]
    highest = max((one for one in averages if one is not None), default=None)
    best = f"{highest.mean:.3f}" if highest is not None and comparable(results) else None
    lines = [
        rf"\begin{{tabular}}{{ll{'r' * len(names)}}}",
        r"\toprule",
        " & ".join(["result", "task id", *map(_latex, map(metric_name, names))]) + r" \\",
        r"\midrule",
    ]
    for one, average in zip(results, averages, strict=True):
        cells = [_latex_number(one.scalars.get(name)) for name in names]
        if average is not None and f"{average.mean:.3f}" == best:
            cells[0] = rf"\textbf{{{cells[0]}}}"
        lines.append(" & ".join([_latex(one.name), _latex(one.task_id), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_number(value: Estimate | None) -> str:
    if value is None:
        return "--"
    mean = f"{value.mean:z.3f}".replace("-", "$-$")
    half = rf" $\pm$ {value.half:.3f}" if value.half is not None else ""
    return f"{mean}{half}"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in safe(text).replace("\n", " "))


def _estimate(value: float | None) -> Estimate | None:
    return None if value is None or math.isnan(value) else Estimate(float(value))


def _mean(value: Estimate | None) -> float | None:
    return None if value is None else value.mean
