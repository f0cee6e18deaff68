"""The state of a bank at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lorabank.core.errors import NotFoundError
from lorabank.core.records import (
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    DatasetRecord,
    TaskRecord,
)


class Snapshot(NamedTuple):
    """Everything that is in a bank, read in one transaction.

    Attributes:
        id: The bank's id.
        format: Version of the folder's layout.
        base: The base model.
        tasks: Tasks that can be used, in the order in which they were learnt.
        removed_tasks: Tasks that were removed: their rows stay as lineage.
        datasets: The data sets of ``tasks``.
        compositions: Compositions that can be used, oldest first.
        by_position: Every adapter ever stored, by the position of its task.
    """

    id: str
    format: int
    base: BaseModelRecord
    tasks: tuple[TaskRecord, ...]
    removed_tasks: tuple[TaskRecord, ...]
    datasets: tuple[DatasetRecord, ...]
    compositions: tuple[CompositionRecord, ...]
    by_position: dict[int, AdapterRecord]

    @property
    def adapters(self) -> dict[str, AdapterRecord]:
        """Adapters by digest, those of removed tasks too; of equal ones that of the first task in use."""
        found: dict[str, AdapterRecord] = {}
        for task in (*self.tasks, *self.removed_tasks):
            adapter = self.by_position[task.position]
            found.setdefault(adapter.digest, adapter)
        return found

    def task(self, name: str) -> TaskRecord:
        """The task of this name.

        Raises:
            NotFoundError: With the nearest name.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise _unknown("task", name, (task.name for task in self.tasks))

    def composition(self, name: str) -> CompositionRecord:
        """The composition of this name.

        Raises:
            NotFoundError: With the nearest name.
        """
        for composition in self.compositions:
            if composition.name == name:
                return composition
        raise _unknown("composition", name, (composition.name for composition in self.compositions))

    def dataset(self, task: str, split: str) -> DatasetRecord | None:
        """A split of a task's data, None when the task has no such split."""
        return next((data for data in self.datasets if (data.task, data.split) == (task, split)), None)

    def adapter_of(self, task: str) -> AdapterRecord:
        """The adapter of a task.

        Raises:
            NotFoundError: There is no such task.
        """
        return self.by_position[self.task(task).position]


def _unknown(kind: str, name: str, known: Iterable[str]) -> NotFoundError:
    from lorabank.core.config import nearest

    names = list(known)
    there = f" The bank has: {', '.join(names)}." if names else f" The bank has no {kind}s yet."
    return NotFoundError(f"no {kind} {name[:80]!r}.{nearest(name, names)}{there}", hint="lorabank list")
