"""One head for all tasks of a bank, which each task's labels make grow (class-incremental learning).

Each adapter holds the whole head as it was after its task. The first rows of the next task's head are copied from it,
the rows of new labels are drawn by the seed, and all rows are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import ConfigError, DataError
from lorabank.core.limits import MAX_LABELS
from lorabank.core.records import TaskRecord
from lorabank.core.states import grown

if TYPE_CHECKING:
    from lorabank.training.job import Replayed


def head_before(snapshot: Snapshot | None, head: Literal["own", "shared"]) -> TaskRecord | None:
    """The task whose head the next one grows from; None where it begins anew.

    Args:
        snapshot: The bank as the next task meets it; None where there is none.
        head: The head of the next task: ``--head``.

    Raises:
        ConfigError: The bank's tasks have a head of the other kind.
    """
    if snapshot is None or not snapshot.tasks:
        return None
    last = snapshot.tasks[-1]
    shared = grown(snapshot.adapter_of(last.name))
    if shared != (head == "shared"):
        theirs = "share one head" if shared else "have a head each"
        raise ConfigError(
            f"the tasks of this bank {theirs}, and the new task would have {_NEW[head]}",
            hint=f"--head {'shared' if shared else 'own'}, or a bank of its own",
            unchanged="nothing was changed",
        )
    return last if shared else None


_NEW = {"own": "a head of its own", "shared": "the shared head"}


def grown_labels(before: TaskRecord | None, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels of a task's head: those of the head it grows from, then the new ones, each in their order.

    Raises:
        DataError: There are more than a task may have.
    """
    known = before.labels if before else ()
    union = tuple(dict.fromkeys((*known, *labels)))
    if len(union) > MAX_LABELS:
        raise DataError(
            f"the shared head would have {len(union):,} labels; {MAX_LABELS:,} is the limit",
            hint="add the task to another bank",
            unchanged="nothing was changed",
        )
    return union


def under_one_head(replayed: Sequence[Replayed], labels: tuple[str, ...]) -> tuple[Replayed, ...]:
    """Rows of earlier tasks, to be judged by the shared head of these labels while it is trained."""
    return tuple(replace(task, labels=labels, head={}) for task in replayed)
