"""What the bank remembers of earlier tasks for the training of the next one: rows to replay, recorded facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import ConfigError
from lorabank.core.records import AdapterRecord
from lorabank.core.shelves import TASK_TYPES
from lorabank.data.rows import Rows
from lorabank.models.bases.open_base import OpenBase

if TYPE_CHECKING:
    from lorabank.training.context import TaskFact
    from lorabank.training.job import Replayed
    from lorabank.training.strategies.base import Strategy


NO_ROWS = Rows((), (), "", (), ())


def rows_before(snapshot: Snapshot | None) -> list[int]:
    """How many rows each of the bank's tasks was trained on, in sequence order."""
    return [_seen(snapshot, task.name) for task in snapshot.tasks] if snapshot else []


def read_replayed(bank: Bank, snapshot: Snapshot, strategy: Strategy) -> tuple[Replayed, ...]:
    """The rows of earlier tasks that a strategy trains on again, and the heads that it asks, by task.

    Raises:
        ConfigError: A task keeps no rows for that, or too few.
    """
    from lorabank.exchange.peft_folder import read_head
    from lorabank.training.job import Replayed
    from lorabank.training.reservoir import KeptRows, replay_rows
    from lorabank.workflows.assemble import form_of, read_rows_of

    seen = rows_before(snapshot)
    budget = strategy.drawn(seen)
    if budget == 0 and not strategy.heads:
        return ()
    kept = []
    for task in snapshot.tasks:
        rows = read_rows_of(bank, snapshot, task.name, "replay") if budget else NO_ROWS
        if rows is None:
            raise ConfigError(
                f"strategy {strategy.name!r} trains on rows of every earlier task, and {task.name!r} keeps none",
                hint=f"use another --strategy, or begin a bank in which every task is added with {strategy.name}",
                unchanged="nothing was changed",
            )
        seed = snapshot.adapter_of(task.name).seed
        kept.append(KeptRows(rows, _seen(snapshot, task.name), task.born, seed))
    drawn = replay_rows(kept, budget, [strategy.kept(rows) for rows in seen])
    replayed = []
    for place, (task, rows) in enumerate(zip(snapshot.tasks, drawn, strict=True)):
        if len(rows) or strategy.heads:
            adapter = snapshot.adapter_of(task.name)
            form, head = form_of(task, adapter), read_head(bank.verified_adapter(adapter.digest))
            said = rows.texts, rows.labels, form.labels, form.template, form.max_length, head
            replayed.append(Replayed(*said, place=place))
    return tuple(replayed)


def replayed_lengths(base: OpenBase, replayed: Sequence[Replayed]) -> list[int]:
    """Tokens of each row that is trained on again, in the order of a training."""
    from lorabank.models.tasks.task_types import Examples
    from lorabank.training.replaying import add_replayed

    task_type = TASK_TYPES.load(base.record.task_type)()
    return list(add_replayed(task_type, base.tokenizer, Examples((), (), 0), replayed).lengths)


def read_objects(bank: Bank, earlier: Sequence[AdapterRecord], strategy: Strategy) -> Mapping[str, Sequence[TaskFact]]:
    """Role to what each earlier task recorded under it, for the roles that a strategy reads.

    Raises:
        ConfigError: A task did not record what the strategy cannot do without.
    """
    from lorabank.core.states import needed
    from lorabank.training.context import TaskFact

    found: dict[str, list[TaskFact]] = {}
    for role in (*strategy.needs, *strategy.reads):
        for adapter in earlier:
            if role in adapter.objects:
                recorded = TaskFact(tuple(needed(adapter)), bank.read_blob(adapter.objects[role]))
                found.setdefault(role, []).append(recorded)
            elif role in strategy.needs:
                raise ConfigError(
                    f"strategy {strategy.name!r} needs what every earlier task recorded as {role!r}, and "
                    f"{adapter.task!r} was added by {adapter.strategy!r}, which records none",
                    hint=f"use another --strategy, or begin a bank in which every task is added with {strategy.name}",
                    unchanged="nothing was changed",
                )
    return found


def _seen(snapshot: Snapshot, task: str) -> int:
    train = snapshot.dataset(task, "train")
    return train.rows if train else 0
