"""What a training is fed: the encoded rows, their batches, and the rows that are held out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from lorabank.core.errors import ConfigError, DataError
from lorabank.core.observer import Observer
from lorabank.core.shelves import TASK_TYPES
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.mixing.trial import try_base
from lorabank.models.tasks.addressed import HEADS, numbered, under_head
from lorabank.models.tasks.probing import undisturbed
from lorabank.models.tasks.task_types import Examples, TaskType
from lorabank.training.job import TrainJob
from lorabank.training.loop.holding import Holding, measure
from lorabank.training.loop.packing import PackedRows, check_packable, collate_packs, packed_loss, packs
from lorabank.training.planning import steps_per_epoch
from lorabank.training.replaying import MixedTask, add_replayed
from lorabank.training.trainer import TaskLoss


class Feed(NamedTuple):
    """What the trainer gets of the rows.

    Attributes:
        rows: The entries of the data set.
        lengths: Tokens of each entry of an epoch; the data set may have more.
        collate: Makes a batch of entries.
        loss: The loss of a batch.
        one: Passes the first row through the model, without a trace.
    """

    rows: Sequence[Any]
    lengths: Sequence[int]
    collate: Callable[[Sequence[Any]], dict[str, Tensor]]
    loss: TaskLoss
    one: Callable[[], None]


def encoded_rows(job: TrainJob, base: LoadedBase, max_length: int, observer: Observer) -> Examples:
    """The task's own rows, on which the base is tried, then the replayed ones.

    Raises:
        DataError: As of `_own_rows`.
        IncompatibleError: They are to be packed, and the model cannot keep the rows of a pack apart.
    """
    if job.config.packing:
        check_packable(base.model, job.base.record.name)
    task_type: TaskType = TASK_TYPES.load(job.base.record.task_type)()
    examples = _own_rows(task_type, job, base, max_length, observer)
    try_base(base, task_type, examples, job.base.record.name, training=True)
    return add_replayed(task_type, base.tokenizer, examples, job.replayed) if job.replayed else examples


def _own_rows(
    task_type: TaskType, job: TrainJob, base: LoadedBase, max_length: int, observer: Observer, *, held: bool = False
) -> Examples:
    """The task's rows as tokens, those for training or those that are held out; notices say how many do not fit.

    Raises:
        DataError: A label does not fit beside its prompt, or no row is left.
    """
    texts, targets = (job.held_texts, job.held_targets) if held else (job.texts, job.targets)
    what = "held-out" if held else "training"
    try:
        examples = task_type.encode(
            base.tokenizer, texts, targets, labels=job.labels, template=job.template, max_length=max_length
        )
    except DataError as error:
        if not held:
            raise
        raise error.saying(f"held-out rows: {error.message}") from None
    if job.labels and examples.dropped:
        raise DataError(
            f"{examples.dropped} of {len(texts)} {what} texts have a label that does not fit into {max_length} "
            "tokens beside its prompt",
            hint="raise --max-length, or --scoring generation for completions that are not labels",
            unchanged="nothing was changed",
        )
    fates = ((examples.cut, "truncated to"), (examples.dropped, "dropped: their answers do not fit into"))
    for count, fate in fates:
        if count:
            observer.notice(f"{count} of {len(texts)} {what} texts are {fate} {max_length} tokens")
    return examples


def feed(
    job: TrainJob,
    base: LoadedBase,
    task: MixedTask,
    examples: Examples,
    loss: TaskLoss | None = None,
    apart: Sequence[int] = (),
) -> Feed:
    """The rows of an epoch, packed where the settings ask for it.

    Args:
        job: Has the settings.
        base: The model that is trained.
        task: What the rows have in common.
        examples: All rows.
        loss: The strategy's own loss of a batch; None for the task's.
        apart: Numbers of the rows that are in no epoch.

    Raises:
        ConfigError: They are to be packed, and the strategy computes the loss of single rows.
    """
    config, one = job.config, partial(pass_one, task, base, examples.rows)
    count = len(examples.lengths) - (0 if job.strategy.mixed else examples.replayed)
    left_out = frozenset(apart)
    passed = [i for i in range(count) if i not in left_out]
    lengths = [min(examples.lengths[i], config.max_length) for i in passed]
    if not config.packing:
        rows: Any = Subset(examples.rows, passed) if apart else examples.rows  # type: ignore[arg-type]
        return Feed(rows, lengths, partial(task.collate, base.tokenizer), loss or task.loss, one)
    if loss is not None:  # of a strategy that does not say so beforehand
        raise ConfigError(
            f"strategy {job.strategy.name!r} computes the loss of single rows, and --packing joins rows",
            hint="leave --packing out, or use another --strategy",
            unchanged="nothing was changed",
        )
    found = packs(lengths, min(config.max_length, base.max_length or config.max_length))
    sums = [sum(lengths[i] for i in pack) for pack in found]
    numbers = [[passed[i] for i in pack] for pack in found]
    return Feed(PackedRows(examples.rows, numbers), sums, partial(collate_packs, base.tokenizer), packed_loss, one)


def held_out(
    job: TrainJob, base: LoadedBase, task: MixedTask, entries: int, max_length: int, observer: Observer
) -> Holding | None:
    """What measures the held-out rows between steps; None where none are held out.

    Args:
        job: Has the rows and the settings.
        base: The model that is trained.
        task: Asks it.
        entries: Entries of the data set that make an epoch.
        max_length: Tokens of a row.
        observer: Gets notices of how many rows they are, and of those that do not fit.

    Raises:
        DataError: As of `_own_rows`.
    """
    config = job.config
    if not job.held_texts:
        return None
    every, held = config.eval_every or steps_per_epoch(entries, config), len(job.held_texts)
    observer.notice(
        f"{held} of {held + len(job.texts)} training rows are held out (seed {config.seed}) and measured "
        f"every {every} step{'s' * (every > 1)}; the evaluation rows are not looked at"
    )
    task_type: TaskType = TASK_TYPES.load(job.base.record.task_type)()
    rows = _own_rows(task_type, job, base, max_length, observer, held=True).rows
    size = config.batch_size

    def of_batches() -> Iterator[dict[str, Tensor]]:
        for first in range(0, len(rows), size):
            numbers = range(first, min(first + size, len(rows)))
            batch = numbered(task_type.collate(base.tokenizer, [rows[i] for i in numbers]), numbers)
            batch |= {HEADS: torch.zeros(len(numbers), dtype=torch.long)} if task.several else {}
            yield {name: tensor.to(base.model.device) for name, tensor in batch.items()}

    weigh = task.weigh if task.weighted else None
    return Holding(
        len(rows), every, config.early_stopping, lambda: measure(base.model, of_batches(), task.mean, weigh)
    )


def batches(
    task: MixedTask, base: LoadedBase, rows: Sequence[Mapping[str, Any]], count: int, size: int
) -> Iterator[dict[str, Tensor]]:
    """The first rows in their order, as inputs on the model's device."""
    for first in range(0, count, size):
        yield inputs(task, base, rows, range(first, min(first + size, count)))


def inputs(
    task: MixedTask,
    base: LoadedBase,
    rows: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    head: int | None = None,
) -> dict[str, Tensor]:
    """Some rows as inputs on the model's device."""
    batch = numbered(task.collate(base.tokenizer, [rows[i] for i in numbers]), numbers)
    return {name: tensor.to(base.model.device) for name, tensor in under_head(batch, head).items()}


def pass_one(task: MixedTask, base: LoadedBase, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first row through the model, without a trace."""
    with undisturbed(base.model):
        task.loss(base.model, next(batches(task, base, rows, 1, 1)))
