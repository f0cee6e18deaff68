"""Which texts a router confuses, and whether it reads the task off words that a user's text will not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorabank.evaluation.routing.stripping import Stripped

MOST_CONFUSIONS = 10
MOST_EXAMPLES = 3
MOST_CHARACTERS = 300
"""Of an example's text."""
_MOST_PHRASES = 5

LEAK = 0.05
"""A task leaks where so large a share of its rows is no longer routed to it without names and phrases."""

_LEAK_ROWS = 3


@dataclass(frozen=True)
class Routes:
    """Where the rows of one task went.

    Attributes:
        task: The task.
        texts: Their texts, n.
        routed: The task that each was sent to.
        confidence: How likely that task was, for each; empty where the router gives no probabilities.
        stripped: The same texts without names and repeated phrases.
        rerouted: Where those went.
    """

    task: str
    texts: Sequence[str]
    routed: Sequence[str]
    confidence: Sequence[float]
    stripped: Stripped
    rerouted: Sequence[str]


@dataclass(frozen=True)
class Example:
    """A row that was sent to another task.

    Attributes:
        row: Its number among the evaluation rows, from 1.
        probability: Of the task that it was sent to; None where the router gives none.
        text: Its text, cut.
    """

    row: int
    probability: float | None
    text: str


@dataclass(frozen=True)
class Confused:
    """Rows of one task that were sent to another.

    Attributes:
        share: Of the task's rows.
        examples: Those that the router was most sure of.
    """

    task: str
    routed: str
    rows: int
    share: float
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class TaskAudit:
    """One task with its texts as they are, and stripped of names and repeated phrases.

    Attributes:
        right: Share of its rows that are routed to it.
        stripped: Rows in which there was something to strip.
        moved: Rows that another task gets once they are stripped.
        right_stripped: Share that is routed to it once they are stripped.
        phrases: The commonest phrases that its rows begin or end with, and in how many rows.
    """

    task: str
    rows: int
    right: float
    stripped: int
    moved: int
    right_stripped: float
    phrases: dict[str, int]


@dataclass(frozen=True)
class RoutingAudit:
    """What a router goes by.

    Attributes:
        rows: Evaluation rows of all tasks.
        right: Share of them that is routed to its own task.
        confused: The commonest pairs of own and routed task.
        stripped: Rows in which there was something to strip.
        moved: Share of all rows that change their route without it.
        right_stripped: Share that is routed to its own task without it.
        names: Names of tasks and data sets that were found, and in how many rows.
        tasks: Each task.
        warnings: A sentence for each task that is found by such words.
    """

    rows: int
    right: float
    confused: tuple[Confused, ...]
    stripped: int
    moved: float
    right_stripped: float
    names: dict[str, int]
    tasks: tuple[TaskAudit, ...]
    warnings: tuple[str, ...]


def audit_of(every: Sequence[Routes]) -> RoutingAudit:
    """Put together what is told of a router.

    Args:
        every: The routes of each task's rows, in the order of the tasks.
    """
    tasks = tuple(map(_task, every))
    total = sum(task.rows for task in tasks)
    names = Counter[str]()
    for routes in every:
        names.update(routes.stripped.names)
    return RoutingAudit(
        rows=total,
        right=sum(_right(one, one.routed) for one in every) / total,
        confused=_confused(every),
        stripped=sum(task.stripped for task in tasks),
        moved=sum(task.moved for task in tasks) / total,
        right_stripped=sum(_right(one, one.rerouted) for one in every) / total,
        names=dict(sorted(names.items(), key=lambda item: (-item[1], item[0]))),
        tasks=tasks,
        warnings=tuple(warning for one in every if (warning := _leak(one))),
    )


def _right(one: Routes, routed: Sequence[str]) -> int:
    return sum(task == one.task for task in routed)


def _task(one: Routes) -> TaskAudit:
    rows = len(one.texts)
    return TaskAudit(
        task=one.task,
        rows=rows,
        right=_right(one, one.routed) / rows,
        stripped=sum(text != left for text, left in zip(one.texts, one.stripped.texts, strict=True)),
        moved=sum(before != after for before, after in zip(one.routed, one.rerouted, strict=True)),
        right_stripped=_right(one, one.rerouted) / rows,
        phrases=dict(list(one.stripped.phrases.items())[:_MOST_PHRASES]),
    )


def _leak(one: Routes) -> str | None:
    """What to say of a task that is found by names or phrases; None where it is found without them too."""
    before, after, rows = _right(one, one.routed), _right(one, one.rerouted), len(one.texts)
    if before - after < max(_LEAK_ROWS, LEAK * rows):
        return None
    return (
        f"routing to {one.task!r} depends on names or repeated phrases: without them {after} of {rows} rows are "
        f"routed to it, with them {before}"
    )


def _confused(every: Sequence[Routes]) -> tuple[Confused, ...]:
    counts = {
        (place, task): rows
        for place, one in enumerate(every)
        for task, rows in Counter(one.routed).items()
        if task != one.task
    }
    commonest = sorted(counts, key=lambda pair: (-counts[pair], pair))[:MOST_CONFUSIONS]
    return tuple(
        Confused(
            every[place].task,
            task,
            counts[place, task],
            counts[place, task] / len(every[place].texts),
            _examples(every[place], task),
        )
        for place, task in commonest
    )


def _examples(one: Routes, task: str) -> tuple[Example, ...]:
    rows = [row for row, routed in enumerate(one.routed) if routed == task]
    sure = one.confidence or [0.0] * len(one.texts)
    rows.sort(key=lambda row: (-sure[row], row))
    return tuple(
        Example(row + 1, one.confidence[row] if one.confidence else None, one.texts[row][:MOST_CHARACTERS])
        for row in rows[:MOST_EXAMPLES]
    )
