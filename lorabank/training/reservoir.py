"""Rows for experience replay: a uniform sample over everything seen so far, of which nothing stored ever changes.

Reservoir sampling (Vitter 1985, Algorithm R) holds, after any number of rows, a uniform sample of ``budget`` of them
without replacement; a row that is out never comes back. The same is had by giving each row an independent random
priority when it is first seen and holding the ``budget`` rows of lowest priority: every set of that size is as likely
as any other to be the lowest, and the lowest of a longer stream are among those of each shorter one.

So no reservoir has to be rewritten: a task keeps its own ``budget`` lowest rows once (`keep_rows`), and the reservoir
after any later task is the lowest of what the tasks kept (`replay_rows`), because a row among the lowest of the union
is among the lowest of its task. The priority of row i of a task is a keyed hash of task and i (`shuffled_key`), not of
its text: equal texts are separate rows. Kept rows stand in the order of their priority, so the priorities can be had
again from the number of rows there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorabank.core.errors import ConfigError
from lorabank.data.rows import Rows, shuffled_key


@dataclass(frozen=True)
class KeptRows:
    """What one task keeps for replay.

    Attributes:
        rows: Rows of lowest priority, lowest first.
        seen: Training rows that the task had.
        task: What tells this task from every other of the bank, for example its position.
        seed: Seed of the task's priorities, in [0, 2**64).
    """

    rows: Rows
    seen: int
    task: str
    seed: int


def keep_rows(rows: Rows, budget: int, *, task: str, seed: int) -> KeptRows:
    """The rows of one task that any reservoir of ``budget`` rows can ever need.

    Args:
        rows: All training rows of the task, in an order that stays.
        budget: Rows of the reservoir over all tasks.
        task: See `KeptRows`.
        seed: See `KeptRows`.
    """
    return KeptRows(rows.take(kept_numbers(len(rows), budget, task=task, seed=seed)), len(rows), task, seed)


def kept_numbers(rows: int, budget: int, *, task: str, seed: int) -> list[int]:
    """The numbers of the rows that `keep_rows` would keep, in its order."""
    return [i for _, i in _priorities(task, rows, seed)[:budget]] if budget else []


def replay_rows(per_task: Sequence[KeptRows], budget: int, most: Sequence[int] | None = None) -> list[Rows]:
    """The reservoir after these tasks: ``min(budget, all rows seen)`` rows, uniform over all rows seen.

    Args:
        per_task: What each task kept, in any order.
        budget: Rows wanted.
        most: How many rows of each task may be among them: then it is uniform over so many of each task's rows of
            lowest priority. By default all may be.

    Returns:
        The rows of each task that are in the reservoir, in the order of ``per_task``; empty where none is.

    Raises:
        ConfigError: A task kept fewer rows than a reservoir of this size may need.
    """
    bounds = [kept.seen for kept in per_task] if most is None else most
    for kept, bound in zip(per_task, bounds, strict=True):
        if len(kept.rows) < (needed := min(budget, kept.seen, bound)):
            raise ConfigError(
                f"task {kept.task!r} kept only {len(kept.rows)} of its {kept.seen} rows; the replay needs {needed}",
                hint=f"ask for at most {len(kept.rows)} rows of replay",
                unchanged="nothing was changed",
            )
    ranked = sorted(
        (priority, task)
        for task, (kept, bound) in enumerate(zip(per_task, bounds, strict=True))
        for priority, _ in _priorities(kept.task, kept.seen, kept.seed)[: min(len(kept.rows), bound)]
    )
    taken = [0] * len(per_task)
    for _, task in ranked[:budget]:
        taken[task] += 1
    return [kept.rows.take(range(n)) for kept, n in zip(per_task, taken, strict=True)]


def _priorities(task: str, seen: int, seed: int) -> list[tuple[bytes, int]]:
    """Priority and number of each row, lowest first."""
    return sorted((shuffled_key(f"{i}\n{task}", seed), i) for i in range(seen))
