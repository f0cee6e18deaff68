"""What both kinds of report have in common: the environment of their templates, and the comparison of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from lorabank.components.frame import environment, plain, stylesheet
from lorabank.evaluation.reporting.compared import (
    SUMMARY,
    Against,
    Result,
    as_csv,
    as_latex,
    by_task_table,
    columns,
    comparable,
    summary_table,
)
from lorabank.evaluation.reporting.pictures import averages_picture
from lorabank.evaluation.reporting.subjects import commonest
from lorabank.evaluation.reporting.words import APART, best, meanings

_MOST_LABELS = 50
"""Of a task whose labels are listed; the scores of the others are in ``eval --json``."""


def page(template: str, **facts: Any) -> str:
    """A whole document of a template of this folder.

    Args:
        template: Its name.
        facts: What it shows.
    """
    found = environment(__package__)
    found.filters["commonest"] = commonest
    common = {"stylesheet": Markup(stylesheet()), "most_labels": _MOST_LABELS}
    return found.get_template(template).render(**common, **facts)


def comparison(results: Sequence[Result], tests: Sequence[Against]) -> dict[str, Any]:
    """What the macro ``compared`` shows: a table with bars, the averages through time, tests, and the table as text.

    Args:
        results: One at least.
        tests: Of the results after the first against the first.
    """
    averages = {one.name: mean.mean for one in results if (mean := one.scalars.get(SUMMARY[0]))}
    metric = plain(results[0].metric) if len({one.metric for one in results}) == 1 else "score"
    caption = "Average over the tasks learnt so far, after each task"
    if any(one.runs > 1 for one in results):
        caption += ": mean of the runs in its 95 % interval"
    return {
        "best": best(averages) if comparable(results) else APART,
        "table": summary_table(results),
        "by_task": by_task_table(results) if len(results) > 1 else None,
        "through": averages_picture([one.line for one in results], metric, caption),
        "baseline": results[0].name,
        "tests": tests,
        "meanings": meanings(columns(results)),
        "latex": as_latex(results),
        "csv": as_csv(results),
    }
