"""The state of a bank at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

from lorabank.core.commands import ADD_TASK, LIST, Command
from lorabank.core.errors import DamagedError, NotFoundError
from lorabank.core.records import (
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    DatasetRecord,
    TaskRecord,
)
from lorabank.core.shelves import ROUTING
from lorabank.core.showing import shown

_SHOWN = 5
"""Names in a message."""

_UNCHANGED = "nothing was changed"


class _Content(NamedTuple):
    """The fields of a snapshot, which says what they are."""

    id: str
    format: int
    base: BaseModelRecord
    tasks: tuple[TaskRecord, ...]
    removed_tasks: tuple[TaskRecord, ...]
    datasets: tuple[DatasetRecord, ...]
    compositions: tuple[CompositionRecord, ...]
    by_position: dict[int, AdapterRecord]
    damaged_tasks: tuple[TaskRecord, ...] = ()
    damaged_compositions: tuple[CompositionRecord, ...] = ()
    removed_compositions: tuple[CompositionRecord, ...] = ()


@shown("id", "base", "tasks", "compositions")
class Snapshot(_Content):
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
        damaged_tasks: Tasks that were set aside because a file they need is damaged; nothing answers with them.
        damaged_compositions: Compositions with such a member.
        removed_compositions: Compositions that were removed.
    """

    @cached_property
    def adapters(self) -> Mapping[str, AdapterRecord]:
        """Adapters by digest, those of removed tasks too; of equal ones that of the first task in use."""
        found: dict[str, AdapterRecord] = {}
        for task in self._numbered.values():
            adapter = self.by_position[task.position]
            found.setdefault(adapter.digest, adapter)
        return found

    @cached_property
    def _numbered(self) -> Mapping[int, TaskRecord]:
        """Every task by position, those in use first."""
        return {task.position: task for task in (*self.tasks, *self.damaged_tasks, *self.removed_tasks)}

    @cached_property
    def _tasks(self) -> Mapping[str, TaskRecord]:
        return {task.name: task for task in self.tasks}

    @cached_property
    def _compositions(self) -> Mapping[str, CompositionRecord]:
        return {composition.name: composition for composition in self.compositions}

    @cached_property
    def _datasets(self) -> Mapping[tuple[str, str], DatasetRecord]:
        return {(data.task, data.split): data for data in self.datasets}

    @cached_property
    def _superseded(self) -> Mapping[int, str]:
        """When what took the place of a task went, by the task's position; "9" where it did not."""
        found: dict[int, str] = {}
        for task in self._numbered.values():
            if task.replaces is not None:
                found[task.replaces] = max(task.removed_at or "9", found.get(task.replaces, ""))
        return found

    def without(self, position: int | None) -> Snapshot:
        """The bank as a new version of a task meets it: the version that it will take the place of is gone."""
        gone = [task for task in self.tasks if task.position == position]
        if not gone:
            return self
        return self._replace(
            tasks=tuple(task for task in self.tasks if task not in gone),
            removed_tasks=(*self.removed_tasks, *gone),
            datasets=tuple(data for data in self.datasets if data.task != gone[0].name),
        )

    def position_of(self, name: str) -> int | None:
        """Position of the task of a name, set aside or not; None where there is none."""
        known = (*self.tasks, *self.damaged_tasks)
        return next((task.position for task in known if task.name == name), None)

    def holding(self, position: int | None) -> tuple[CompositionRecord, ...]:
        """The compositions that have a task as a member: they go when it is replaced."""
        named = {task.name for task in (*self.tasks, *self.damaged_tasks) if task.position == position}
        known = (*self.compositions, *self.damaged_compositions)
        return tuple(made for made in known if not named.isdisjoint(made.members))

    def versions(self, task: TaskRecord) -> tuple[TaskRecord, ...]:
        """A task and what it took the place of, oldest first."""
        if task.replaces is None:
            return (task,)
        chain = [task]
        while (before := self._numbered.get(chain[-1].replaces or 0)) is not None:
            chain.append(before)
        return tuple(reversed(chain))

    def state_of(self, task: TaskRecord) -> str:
        """The state of a task for people: ``"superseded"`` where a newer version took its place."""
        if task.state != "removed":
            return "damaged" if task.state == "failed" else task.state
        took = self._superseded.get(task.position, "") > (task.removed_at or "")  # one that was undone did not
        return "superseded" if took else "removed"

    def task(self, name: str) -> TaskRecord:
        """The task of this name.

        Raises:
            NotFoundError: With the nearest name.
            DamagedError: It was set aside.
        """
        if (task := self._tasks.get(name)) is not None:
            return task
        self.refuse_damaged(name)
        raise self.unknown("task", name, (task.name for task in self.tasks))

    def composition(self, name: str) -> CompositionRecord:
        """The composition of this name.

        Raises:
            NotFoundError: With the nearest name.
            DamagedError: A member of it was set aside.
        """
        if (composition := self._compositions.get(name)) is not None:
            return composition
        self.refuse_damaged(name)
        raise self.unknown("composition", name, (composition.name for composition in self.compositions))

    def unknown(self, kind: str, name: str, known: Iterable[str]) -> NotFoundError:
        """The error for a name that is not among those known: the nearest, or that it was removed."""
        from lorabank.core.settings import nearest

        what = f"no {kind} {name[:80]!r}"
        removed = {task.name for task in self.removed_tasks} | {made.name for made in self.removed_compositions}
        if name in removed:
            commands = [Command("list", "--all"), Command("log")]
            return NotFoundError(f"{what}: it was removed", commands=commands, unchanged=_UNCHANGED)
        names = list(known)
        more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
        there = f"The bank has: {', '.join(names[:_SHOWN])}{more}" if names else f"The bank has no {kind} yet"
        follow = LIST if names else Command("compose", "--mode", ROUTING) if self.tasks else ADD_TASK
        return NotFoundError(f"{what}{nearest(name, names) or '.'} {there}", commands=[follow], unchanged=_UNCHANGED)

    def refuse_damaged(self, name: str) -> None:
        """Refuse the name of a task or composition that was set aside.

        Raises:
            DamagedError: Saying what brings it back.
        """
        damaged = {task.name: "task" for task in self.damaged_tasks}
        damaged |= {composition.name: "composition" for composition in self.damaged_compositions}
        if (what := damaged.get(name)) is not None:
            raise DamagedError(
                f"{what} {name!r} was set aside: a file that it needs is damaged",
                hint="fetch a good copy, or remove it",
                commands=[Command("doctor", "--repair", "--from", "COPY"), Command("remove", name)],
                unchanged=_UNCHANGED,
            )

    def dataset(self, task: str, split: str) -> DatasetRecord | None:
        """A split of a task's data, None when the task has no such split."""
        return self._datasets.get((task, split))

    def adapter_of(self, task: str) -> AdapterRecord:
        """The adapter of a task.

        Raises:
            NotFoundError: There is no such task.
        """
        return self.by_position[self.task(task).position]
