"""One bank of a sequence: tasks learnt one after another, composed and measured; what is there is not done again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, TrainConfig
from lorabank.core.errors import LorabankError
from lorabank.core.observer import Observer
from lorabank.core.records import OperationRecord
from lorabank.core.settings import validate
from lorabank.training.methods import chosen_strategy
from lorabank.workflows.compose import compose
from lorabank.workflows.evaluate import evaluate
from lorabank.workflows.learning.past import moved_on, past_of, recorded_config
from lorabank.workflows.learning.train import add_task
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import MatrixReport


def learnt_tasks(bank: Path) -> tuple[str, ...]:
    """The tasks of a bank in order; none where there is no bank."""
    with proposing(bank):
        return tuple(task.name for task in Bank.open(bank).snapshot().tasks) if Bank.exists(bank) else ()


def interrupted(bank: Path, task: str) -> OperationRecord | None:
    """The training of a task that stopped before its end."""
    if not Bank.exists(bank):
        return None
    stopped = (operation for operation in Bank.open(bank).operations() if not operation.alive)
    return next((operation for operation in stopped if (operation.kind, operation.name) == ("add-task", task)), None)


def learn(bank: Path, task: str, config: TrainConfig, init: InitConfig | None, observer: Observer) -> None:
    """Add a task that is not in the bank yet.

    An interrupted training is resumed where its settings and its past are the same, to what it would have been; else
    it begins anew.
    """
    with proposing(bank):
        stopped = interrupted(bank, task)
        same = stopped is not None and _is_the_same(Bank.open(bank), stopped, validate(TrainConfig, asdict(config)))
        restart = stopped is not None and not same
        add_task(OpenBank(bank), task, config, init=init, resume=same, restart=restart, observer=observer)


def _is_the_same(bank: Bank, stopped: OperationRecord, config: TrainConfig) -> bool:
    stored = stopped.config.get("config")
    if stored is None or recorded_config(stored) != asdict(config):
        return False
    snapshot = bank.snapshot()
    strategy = chosen_strategy(config)
    return moved_on(stopped.config, past_of(snapshot, strategy), snapshot) is None


def compose_and_measure(
    bank: Path, compositions: Iterable[ComposeConfig], config: EvalConfig, observer: Observer
) -> tuple[MatrixReport, ...]:
    """Make the compositions that are not there yet, and score what ``config`` asks for."""
    with proposing(bank):
        opened = OpenBank(bank)
        there = {composition.name for composition in opened.snapshot.compositions}
        for composition in compositions:
            if (composition.name or composition.mode) not in there:
                observer.notice(f"composing: {composition.name or composition.mode}")
                compose(opened, composition, observer)
        return evaluate(opened, config, observer)


@contextmanager
def proposing(bank: Path) -> Iterator[None]:
    """What an error of the block proposes is typed for this bank, which the call itself did not name."""
    try:
        yield
    except LorabankError as error:
        error.commands = tuple(command.about(str(bank)) for command in error.commands)
        raise
