"""A sequence that is ready to run: its file, base model, rows and folder fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from lorabank.compose.base import checked_mode
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.methods import with_settings
from lorabank.core.observer import Observer
from lorabank.core.records import BaseModelRecord
from lorabank.core.settings import nearest
from lorabank.core.shelves import OPTIMIZERS, REFERENCES
from lorabank.data.methods import of_training
from lorabank.models.bases.open_base import OpenBase
from lorabank.sequences.checks import named_tables, tables_of
from lorabank.sequences.config import Cell, SequenceConfig
from lorabank.sequences.file import check_data, read_sequence
from lorabank.sequences.folder import SequenceFolder, digest_of, document_of
from lorabank.sequences.protocol import Measured, protocol_card
from lorabank.sequences.references.measuring import ReferenceJob, check_reference
from lorabank.sequences.rows import SequenceTask, read_tasks
from lorabank.training.methods import check_packing, chosen_strategy
from lorabank.training.trackers import check_tracker
from lorabank.workflows.bases import described


@dataclass(frozen=True)
class SequenceJob:
    """A sequence to run or to plan.

    Attributes:
        config: What the file says.
        base: The base model of every bank.
        tasks: The rows of every task.
        folder: Where everything lies.
        cells: The banks that are asked for.
        dev: Whether the rows that settings are chosen on are scored.
    """

    config: SequenceConfig
    base: BaseModelRecord
    tasks: Mapping[str, SequenceTask]
    folder: SequenceFolder
    cells: tuple[Cell, ...]
    dev: bool

    @property
    def manifest(self) -> dict[str, Any]:
        """What the folder is begun with: a run that is resumed must have the same."""
        return {
            "document": document_of(self.config),
            "sha256": digest_of(self.config),
            "dev": self.dev,
            "base": self.base.fingerprint,
            "rows": {name: task.digests for name, task in self.tasks.items()},
        }

    def training(self, cell: Cell, task: str) -> TrainConfig:
        """The settings of one training."""
        settings = self.config.training(task, cell.strategy, seed=cell.seed)
        return self.tasks[task].written(settings, self.folder.data)

    def reference(self, cell: Cell) -> ReferenceJob | None:
        """What is to be measured of a cell whose strategy is a reference; None where it is none."""
        found = self.config.reference(cell.strategy)
        if found is None:
            return None
        tasks = [(task, self.training(cell, task)) for task in self.config.order(cell)]
        folder = self.folder.reference(cell)
        return ReferenceJob(found, OpenBase(self.base), tasks, self.config.evaluation, folder)

    def rows_trained(self, cell: Cell) -> dict[str, int]:
        """Training rows of each task of a cell, with those of earlier tasks that its strategy trains on again."""
        order = self.config.order(cell)
        again = None if self.config.reference(cell.strategy) else chosen_strategy(self.training(cell, order[0]))
        found: dict[str, int] = {}
        seen: list[int] = []
        for task in order:
            own = len(self.tasks[task].data.train)
            found[task] = own + (again.in_epoch(seen) if again else 0)
            seen.append(own)
        return found

    def work(self, cell: Cell) -> dict[str, float]:
        """Task to its share of the work, in rows that are trained on once; under ``""`` that of the scoring."""
        work = {task: rows * self.training(cell, task).epochs for task, rows in self.rows_trained(cell).items()}
        order = self.config.order(cell)
        scored = sum((len(order) - i) * len(self.tasks[task].data.eval) for i, task in enumerate(order))
        subjects = 1 + len(self.config.composed(cell.strategy, cell.seed))
        return work | {"": subjects * scored / 3}  # a step computes forwards, and twice as much backwards

    def card(self, measured: Sequence[Measured]) -> dict[str, Any]:
        """The protocol card of these banks."""
        return protocol_card(self.config, self.base, self.tasks, measured, dev=self.dev)


def prepare_sequence(
    file: str | Path,
    *,
    out: str | Path | None,
    size: str | None,
    dev: bool,
    only: Sequence[str],
    observer: Observer,
) -> SequenceJob:
    """Read everything that a sequence needs, and check that it fits; nothing is written.

    Args:
        file: The TOML file.
        out: The folder; default: the sequence's name.
        size: A table of ``[sizes]``.
        dev: Score on the rows that settings are chosen on.
        only: Strategies to run; all if empty.
        observer: Gets notices.
    """
    config = read_sequence(file, size)
    known = config.settings.strategies
    for strategy in only:
        if strategy not in known:
            raise ConfigError(
                f"{file} has no strategy {strategy!r}{nearest(strategy, list(known))}",
                hint=f"--only {'|'.join(known)}",
                unchanged="nothing was changed",
            )
    check_data(config)
    for task, strategy in product(config.task_names, known):
        training = config.training(task, strategy)
        check_tracker(training.report_to)
        with named_tables(config, tables_of(config, task, strategy)):
            _check_method(
                config, strategy, training, earlier=max(order.index(task) for order in config.settings.orders)
            )
    for number, composition in enumerate(config.compositions, start=1):
        with named_tables(config, {f"[[compositions]] {number}": composition.set}):
            checked_mode(composition)
    base = described(config.init, observer, form=_form(config))
    for reference in filter(None, map(config.reference, known)):
        check_reference(OpenBase(base), reference)
    tasks = read_tasks(config, OpenBase(base), dev=dev)
    folder = SequenceFolder(Path(out) if out is not None else Path(f"{config.name}-dev" if dev else config.name))
    cells = tuple(cell for cell in config.cells if not only or cell.strategy in only)
    job = SequenceJob(config, base, tasks, folder, cells, dev)
    folder.check(job.manifest)
    return job


def _check_method(config: SequenceConfig, strategy: str, training: TrainConfig, *, earlier: int) -> None:
    """Refuse settings that the strategy or the reference does not have, or not after so many earlier tasks."""
    reference = config.reference(strategy)
    if reference is None:
        check_packing(chosen_strategy(training), training, earlier)
        return
    with_settings([(REFERENCES, reference.name), (OPTIMIZERS, training.optimizer)], of_training(training.set))
    if training.eval_every is not None or training.early_stopping is not None:
        raise ConfigError(
            f"{config.file}: {strategy} holds no rows out of a training, and eval_every or early_stopping is given",
            hint="leave them or this strategy out",
            unchanged="nothing was changed",
        )
    if training.head != TrainConfig.head:
        raise ConfigError(
            f"{config.file}: {strategy} gives each task a head of its own, and head is {training.head!r}",
            hint="leave head or this strategy out",
            unchanged="nothing was changed",
        )


def _form(config: SequenceConfig) -> str:
    """The form of the first task's rows, which decides the default base model."""
    from lorabank.data.loading import detect_form

    first = config.task_names[0]
    with named_tables(config, tables_of(config, first)):
        return detect_form(config.training(first))
