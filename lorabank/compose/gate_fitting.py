"""How a gate learns: on the rows that the bank keeps of every task, with adapters and heads frozen.

One loop serves every gate. A gate of tokens is entered once; for a gate of whole texts the bare base reads the kept
rows once, and every step weighs the rows of its batch by what was read. Each row is judged by its own task's head, and
the loss is the task loss and the gate's own regulariser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.compose.base import Member, longest
from lorabank.compose.gate_facts import states_of, with_posterior
from lorabank.compose.posterior import kept_posterior
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import DivergedError, NotFoundError
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.observer import Observer
from lorabank.core.shelves import ROUTING
from lorabank.data.rows import Rows, sample_rows
from lorabank.models.finite import check_tensors
from lorabank.models.gates.base import Gate, GateMethod, TokenGate
from lorabank.models.gates.texts import TextFacts, TextGate
from lorabank.models.mixing.runtime import Plan, Runtime

_NEAR_ZERO = 1e-3
_LOOKED_AT = 64


class Lesson:
    """A gate and the kept rows of its members.

    Args:
        gate: Over the states of the members.
        members: With their kept rows.
        runtime: Its base, adapters and heads stay as they are.
        rows: Maximum number of rows of each member; None for all.
        seed: By which they are drawn; each label keeps its share.
    """

    def __init__(
        self, gate: Gate, members: Sequence[Member], runtime: Runtime, rows: int | None = None, seed: int = 0
    ) -> None:
        self.gate, self._members, self._runtime = gate, members, runtime
        self.states = states_of(members)
        self._stack = runtime.states(self.states)
        chosen = [_chosen(member, rows, seed) for member in members]
        starts = np.cumsum([0, *(len(member.texts) for member in members)])
        self.sizes = [len(own) for own in chosen]
        self._kept = [int(start) + i for start, own in zip(starts, chosen, strict=False) for i in own]
        self._texts = [member.texts[i] for member, own in zip(members, chosen, strict=True) for i in own]
        self._targets = [member.targets[i] for member, own in zip(members, chosen, strict=True) for i in own]
        self._heads = np.repeat(np.array([member.head for member in members], np.int64), self.sizes)

    @cached_property
    def facts(self) -> TextFacts:
        """What a gate of whole texts reads of the kept rows."""
        return self._read(range(len(self._texts)))

    def _read(self, rows: Sequence[int]) -> TextFacts:
        """What a gate of whole texts reads of some rows; the posterior is of a router fitted without the kept rows."""
        assert isinstance(self.gate, TextGate)
        keys = [self._texts[i] or self._targets[i] for i in rows]
        facts = self._runtime.first_pass(keys, self._stack, self.gate.reads, longest(self._members))
        if "posterior" not in self.gate.reads:
            return facts
        posterior = kept_posterior(self._members, self._runtime)[[self._kept[i] for i in rows]]
        return with_posterior(facts, posterior, self._members, self._runtime)

    def begin(self) -> None:
        """Put the model where its first step starts, and the gate where its kept rows place it."""
        self._runtime.measure_padding(2)
        self._runtime.mixture.off()
        self._runtime.base.model.eval()
        if isinstance(self.gate, TextGate):
            of = torch.tensor([self.states.index(tuple(member.state)) for member in self._members])
            with torch.no_grad():
                self.gate.place(self.facts, of.repeat_interleave(torch.tensor(self.sizes)))
        else:
            assert isinstance(self.gate, TokenGate)
            self._runtime.enter(Plan(gate=self.gate, states=self.states))

    def loss(self, rows: Sequence[int]) -> Tensor:
        """The mean task loss of some rows, with its graph."""
        if isinstance(self.gate, TextGate) and not self._runtime.keeps_apart:
            return torch.stack([self._loss([row]) for row in rows]).mean()
        return self._loss(rows)

    def _loss(self, rows: Sequence[int]) -> Tensor:
        texts, targets = [self._texts[i] for i in rows], [self._targets[i] for i in rows]
        if not isinstance(self.gate, TextGate):
            return self._runtime.loss(texts, targets, self._heads[list(rows)])
        enter = self._runtime.weighing(self.gate, self._stack, self.facts.take(rows))
        return self._runtime.loss(texts, targets, self._heads[list(rows)], enter)

    @torch.no_grad()
    def mean_loss(self, batch_size: int) -> float:
        """The mean over the tasks of the mean loss of their kept rows."""
        total, start = 0.0, 0
        for size in self.sizes:
            parts = torch.arange(start, start + size).split(batch_size)
            total += sum(float(self.loss(part.tolist())) * len(part) for part in parts) / size
            start += size
        return total / len(self.sizes)

    @torch.no_grad()
    def weights(self) -> list[Tensor]:
        """All weights of up to 64 kept rows, ``[..., K + 1]``; one row at a time, so that no padding counts."""
        seen: list[Tensor] = []
        per_member = max(1, _LOOKED_AT // len(self._members))
        starts = np.cumsum([0, *self.sizes[:-1]]).tolist()
        rows = [
            i for start, size in zip(starts, self.sizes, strict=True) for i in range(start, start + size)[:per_member]
        ]
        with self.gate.watched(seen):
            if isinstance(self.gate, TextGate):
                self.gate.mix(self._stack, self._read(rows))
            else:
                self.begin()
                for row in rows:
                    self.loss([row])
        self._runtime.mixture.off()
        return seen


def fit_gate(
    members: Sequence[Member], method: GateMethod, config: ComposeConfig, runtime: Runtime, observer: Observer
) -> tuple[Gate, dict[str, Any]]:
    """Learn a gate on the members' calibration samples.

    Args:
        members: Two or more.
        method: The kind of gate, which says how long and how fast it learns.
        config: Batch size and seed.
        runtime: Its base, adapters and heads stay as they are.
        observer: Gets the loss.

    Returns:
        The gate, which learns no more; and of a guarded one the mean loss before and after, and whether what it learnt
        is kept.

    Raises:
        DivergedError: If the loss is not finite.
    """
    seed_everything(config.seed)
    gate = method.build(runtime.states(states_of(members)))
    if not method.trained:
        return gate.requires_grad_(False), {}
    lesson = Lesson(gate, members, runtime, method.limit, config.seed)
    try:
        lesson.begin()
        if not method.guarded:
            _learn(lesson, method, config, observer)
            return gate.requires_grad_(False), {}
        start = {name: value.clone() for name, value in gate.tensors().items()}
        before = lesson.mean_loss(config.batch_size)
        _learn(lesson, method, config, observer)
        after = lesson.mean_loss(config.batch_size)
        if not after < before:
            gate.load_tensors(start)
        return gate.requires_grad_(False), {"loss": {"before": before, "after": after}, "learnt": after < before}
    finally:
        runtime.mixture.off()


def _chosen(member: Member, most: int | None, seed: int) -> Sequence[int]:
    """Numbers of a member's kept rows: all, or a sample."""
    lines = tuple(range(len(member.texts)))
    if most is None:
        return lines
    rows = Rows(member.texts, member.targets, member.task, (), lines, free=not member.form.labels)
    return sample_rows(rows, most, seed).lines


def _learn(lesson: Lesson, method: GateMethod, config: ComposeConfig, observer: Observer) -> None:
    gate = lesson.gate
    optimizer = torch.optim.Adam(gate.parameters(), lr=method.learning_rate)
    batches = _batches(lesson.sizes, config.batch_size, balanced=method.balanced)
    steps = math.ceil(method.epochs * math.ceil(sum(lesson.sizes) / config.batch_size))
    observer.start(f"a gate over {len(lesson.states)} states", steps)
    try:
        for done in range(1, steps + 1):
            task_loss = lesson.loss(next(batches))
            own = method.regulariser(gate)
            loss = task_loss + own
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"the gate diverged at step {done}",
                    unchanged="the composition was not added to the bank",
                    hint=f"lower it: --set learning_rate={method.learning_rate / 10:g}",
                )
            optimizer.zero_grad()
            loss.backward(inputs=list(gate.parameters()))
            optimizer.step()
            observer.advance(done, {"loss": float(task_loss.detach()), "regulariser": float(own.detach())})
    finally:
        observer.finish()
    check_tensors(dict(gate.named_parameters()), "the gate's parameters")


def _batches(sizes: Sequence[int], batch_size: int, *, balanced: bool) -> Iterator[list[int]]:
    """Rows of one step after the other, every pass in an order of its own.

    Args:
        sizes: Kept rows of each task.
        batch_size: Rows of a step.
        balanced: Whether a pass has as many rows of each task, side by side; those of a smaller task come again.
    """
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    while True:
        order = torch.randperm(sum(sizes))
        if balanced:
            own = [
                start + torch.randperm(size).repeat(-(-max(sizes) // size))
                for start, size in zip(starts, sizes, strict=True)
            ]
            order = torch.stack([rows[: max(sizes)] for rows in own], 1).flatten()
        yield from (part.tolist() for part in order.split(batch_size))


def sparsity(gate: Gate, members: Sequence[Member], runtime: Runtime) -> dict[str, Any]:
    """How few members answer, over up to 64 calibration texts, one at a time so that no padding counts.

    Returns:
        ``attention``: mean weight of the zero adapter (``"zero"``) and of each state, named by its tasks, over modules
        and tokens (or texts); ``effective_adapters``: exp of the mean entropy, between 1 and K + 1; ``near_zero``:
        share of the parameters that the gate's regulariser makes small below 1e-3 in absolute value, where it has one.
    """
    every = torch.cat([weights.flatten(0, -2) for weights in Lesson(gate, members, runtime).weights()]).double()
    mean: NDArray[np.float64] = every.mean(0).cpu().numpy()
    entropy = -(every * every.clamp_min(1e-300).log()).sum(-1).mean()
    small = [parameter.flatten() for parameter in gate.regularised()]
    tasks: dict[tuple[str, ...], list[str]] = {}
    for member in members:
        tasks.setdefault(tuple(member.state), []).append(member.task)
    names = ("zero", *(" + ".join(own) for own in tasks.values()))
    found = {
        "attention": {name: float(value) for name, value in zip(names, mean, strict=True)},
        "effective_adapters": float(entropy.exp()),
    }
    if small:
        found["near_zero"] = float((torch.cat(small).abs() < _NEAR_ZERO).double().mean())
    return found


def check_samples(members: Sequence[Member]) -> None:
    """Refuse a member without kept rows.

    Raises:
        NotFoundError: Naming the first.
    """
    missing = [member.task for member in members if not member.texts]
    if missing and len(members) > 1:
        raise NotFoundError(
            f"task {missing[0]!r} was added without calibration samples, which a gate is fitted on",
            hint=f"{ROUTING} needs none",
            commands=[Command("compose", "--mode", ROUTING)],
            unchanged="nothing was changed",
        )
