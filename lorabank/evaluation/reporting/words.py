"""What a report says in words: its headline, what is not above chance, and what the names of metrics mean."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from lorabank.components.frame import count, plain, score
from lorabank.components.markup import element
from lorabank.core.shelves import METRICS
from lorabank.evaluation.reporting.measured import Measured

_MOST_NAMED = 8
"""Tasks that a warning names."""

ROUTED_RIGHT = "routing_accuracy"
"""The share of the rows that were routed to their own task; beside it ``oracle``, the average with perfect routing."""

_OWN = {
    "oracle": "Average score if every row had been routed to its own task.",
    ROUTED_RIGHT: "Share of the rows that were routed to their own task.",
}
"""Columns of a comparison that are not metrics of a matrix."""


APART = "The results are about different tasks or metrics, so their averages do not say which is better."


def headline(one: Measured) -> str | None:
    """A subject in a sentence: average, forgetting and the worst task; None before anything is whole."""
    last = {task: value for task, value in zip(one.tasks, one.values[-1], strict=True) if is_number(value)}
    if len(last) < len(one.tasks):
        return None
    worst = min(last, key=lambda task: float(last[task]))
    average = one.scalars.get("average_accuracy")
    parts = [f"{one.subject}: average {plain(one.metric)} {score(average)} after {count(len(last), 'task')}"]
    forgotten = one.scalars.get("forgetting")
    if is_number(forgotten):
        parts.append(f"forgetting {score(forgotten)}")
    if len(last) > 1:
        parts.append(f"the worst task is {worst} with {score(last[worst])}")
    return "; ".join(parts) + "."


def best(averages: Mapping[str, float]) -> str | None:
    """Which of several results has the highest average to three decimals; None of fewer than two."""
    if len(averages) < 2:
        return None
    rounded = {name: f"{average:.3f}" for name, average in averages.items()}
    highest, lowest = (f"{pick(averages.values()):.3f}" for pick in (max, min))
    if highest == lowest:
        return f"All {len(averages)} ways to train and answer have the average {highest}."
    first, last = ([name for name, one in rounded.items() if one == end] for end in (highest, lowest))
    have = "has" if len(first) == 1 else "have"
    return (
        f"Of {len(averages)} ways to train and answer, {_listed(first)} {have} the highest average ({highest}) and "
        f"{_listed(last)} the lowest ({lowest})."
    )


def _listed(names: Sequence[str]) -> str:
    """Few are named, many counted."""
    return " and ".join(names) if len(names) <= 3 else f"{len(names)} of them"


def chance_warning(one: Measured) -> str | None:
    """Which tasks of a subject are not above chance; None where all are."""
    low = [task for task, scores in one.labels.items() if scores.chance_note]
    if not low:
        return None
    listed = ", ".join(low[:_MOST_NAMED]) + (f" and {len(low) - _MOST_NAMED} more" if len(low) > _MOST_NAMED else "")
    return f"{one.subject}: not clearly above chance on {count(len(low), 'task')} of {len(one.labels)} ({listed})."


def metric_name(name: str) -> str:
    """``forgetting, first last`` for ``forgetting.first_last``."""
    return "routed right" if name == ROUTED_RIGHT else name.replace(".", ", ").replace("_", " ")


def meaning(name: str) -> str | None:
    """What a metric is, with its formula, as its function says; None of one that is not on the shelf."""
    if name in _OWN:
        return _OWN[name]
    if name not in METRICS:
        return None
    said = inspect.getdoc(METRICS.load(name)) or ""
    return said.partition("\n\n")[0].replace("\n", " ").replace("``", "") or None


def with_meaning(name: str) -> Markup:
    """The name of a metric with its meaning as a tooltip."""
    return element("abbr", metric_name(name), title=f"{name}. {meaning(name)}" if meaning(name) else name)


def meanings(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Plain name, name and meaning of those that have one."""
    return [(metric_name(name), name, said) for name in names if (said := meaning(name))]


def is_number(value: float | None) -> bool:
    """Whether there is a value."""
    return value is not None and not math.isnan(value)
