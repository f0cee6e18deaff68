"""The rows that tasks kept (``add-task --keep-samples``), and the model that is asked with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from lorabank.compose.base import Member, state_weights
from lorabank.compose.vectors import adapters_of, by_adapter
from lorabank.core.commands import Command
from lorabank.core.errors import NotFoundError
from lorabank.core.observer import Observer
from lorabank.core.shelves import SUMMING
from lorabank.data.rows import Rows, sample_rows
from lorabank.models.gates.base import TokenGate
from lorabank.models.mixing.runtime import Plan, Runtime

T = TypeVar("T")

Measured = dict[tuple[str, tuple[str, ...]], object]
"""What was measured of a task on some modules."""


@dataclass(frozen=True)
class KeptRows:
    """Members with their kept rows.

    Attributes:
        members: They, by task.
        runtime: The model.
        observer: Gets the progress.
        batch_size: Rows of a forward pass.
        seed: Of whatever is drawn.
        measured: What was measured of a task before, for the next stage; None where nothing is to be kept.
    """

    members: Mapping[str, Member]
    runtime: Runtime
    observer: Observer
    batch_size: int
    seed: int
    measured: Measured | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The members' names, in sequence order."""
        return tuple(self.members)

    def sample(self, limit: int) -> KeptRows:
        """The same with at most so many rows of each task, drawn by the seed; each label keeps its share."""
        few = {task: _few(member, limit, self.seed) for task, member in self.members.items()}
        return replace(self, members=few)

    def batches(self, task: str) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """The rows of a task in batches: how many they are, and what gives their mean loss as training has it."""
        member = self.members[task]
        for start in range(0, len(member.texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            texts, targets = member.texts[rows], member.targets[rows]
            yield len(texts), partial(self.runtime.loss, texts, targets, member.head)

    def predictions(self, task: str) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
        """What passes each row of a task by itself; see `Runtime.predictions`."""
        member = self.members[task]
        for text, target in zip(member.texts, member.targets, strict=True):
            yield partial(self.runtime.predictions, text, target, member.head)

    @contextmanager
    def own_state(self, task: str) -> Iterator[None]:
        """For the length of a block the model is in the state in which the task was learnt, without dropout."""
        own = dict.fromkeys(self.members[task].state, 1.0)
        with self.state(Plan(weights=state_weights(self.runtime.stack.names, own))):
            yield

    @contextmanager
    def summed(self, weights: Mapping[str, float]) -> Iterator[None]:
        """For the length of a block the model is in the sum of the members' delta weights, each times a weight."""
        total = by_adapter([self.members[task] for task in weights], weights)
        with self.state(Plan(weights=state_weights(self.runtime.stack.names, total))):
            yield

    @contextmanager
    def under(self, gate: TokenGate) -> Iterator[None]:
        """For the length of a block what is taken for the members is under a gate, each sum of adapters once."""
        with self.state(Plan(gate=gate, states=self.states)):
            yield

    @property
    def states(self) -> tuple[tuple[str, ...], ...]:
        """The sum of adapters that is taken for each member, each sum once."""
        return tuple(dict.fromkeys(adapters_of(member) for member in self.members.values()))

    @contextmanager
    def state(self, plan: Plan) -> Iterator[None]:
        """For the length of a block the model is in a state that was made anew: one of inference has no gradients."""
        self.runtime.measure_padding(2)  # its passes are none of a task
        self.runtime.mixture.off()
        self.runtime.base.model.eval()
        self.runtime.enter(plan)
        try:
            yield
        finally:
            self.runtime.mixture.off()

    def mean_loss(self) -> float:
        """The mean of the tasks' mean losses in the state that was entered; of a task's batches by their rows."""
        with torch.no_grad():
            return sum(
                sum(count * float(loss()) for count, loss in self.batches(task)) / len(self.members[task].texts)
                for task in self.tasks
            ) / len(self.tasks)

    def measure(self, task: str, modules: tuple[str, ...], make: Callable[[], T]) -> T:
        """What was measured of a task on these modules for an earlier stage, or is measured now."""
        if self.measured is None:
            return make()
        if (task, modules) not in self.measured:
            self.measured[task, modules] = make()
        return self.measured[task, modules]  # type: ignore[return-value]


def _few(member: Member, limit: int, seed: int) -> Member:
    lines = tuple(range(len(member.texts)))
    rows = Rows(member.texts, member.targets, member.task, (), lines, free=not member.form.labels)
    few = sample_rows(rows, limit, seed)
    return replace(member, texts=few.texts, targets=few.labels)


def check_kept(name: str, members: Sequence[Member]) -> None:
    """Refuse a member without kept rows.

    Raises:
        NotFoundError: Naming the first.
    """
    missing = [member.task for member in members if not member.texts]
    if missing:
        raise NotFoundError(
            f"task {missing[0]!r} was added without calibration samples, which the merger {name} is fitted on",
            hint="leave it out, or sum the delta weights, which needs none; add-task keeps some",
            commands=[Command("compose", "--mode", SUMMING)],
            unchanged="nothing was changed",
        )
