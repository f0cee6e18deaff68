"""The rows of a sequence: read once, checked against each other, sampled, and written as files of its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError
from lorabank.data.loading import TaskData
from lorabank.data.rows import sample_rows
from lorabank.data.splits import split_rows
from lorabank.models.bases.open_base import OpenBase
from lorabank.sequences.checks import named_tables, tables_of
from lorabank.sequences.config import SequenceConfig
from lorabank.sequences.files import as_written, copy_rows, load_without

_UNCHANGED = "nothing was trained"


@dataclass(frozen=True)
class SequenceTask:
    """A task's rows in a sequence.

    Attributes:
        name: The task.
        data: Labels, template and the rows: before sampling from `read_tasks`' own view, sampled in what it gives.
        of: How many rows the training rows and the scored ones were sampled from.
        left_out: Rows of labels that are left out: of the training file, and of the one that is scored.
        notes: What a reader of the numbers should know.
    """

    name: str
    data: TaskData
    of: tuple[int, int]
    left_out: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the rows of both splits."""
        return {"train": self.data.train.sha256, "eval": self.data.eval.sha256}

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Where `write_tasks` puts the training rows, and those that are scored."""
        return folder / self.name / "train.jsonl", folder / self.name / "eval.jsonl"

    def written(self, settings: TrainConfig, folder: Path) -> TrainConfig:
        """The settings that read the files of `write_tasks` in the place of the task's own."""
        train, evaluation = map(str, self.files(folder))
        return as_written(settings, data=train, eval_data=evaluation, skip_bad=False, format=self.data.form)


def read_tasks(config: SequenceConfig, base: OpenBase, *, dev: bool) -> dict[str, SequenceTask]:
    """Read, check and sample the rows of every task; nothing is written.

    Args:
        config: The sequence.
        base: The base model that is to learn them.
        dev: Score on the rows that settings are chosen on, in the place of the evaluation rows.

    Raises:
        DataError: A row is wrong, or a text that is scored on is trained on by a task of the sequence.
        ConfigError: There are no rows to choose settings on, or they are the evaluation rows and ``selection`` does
            not say so.
    """
    whole = []
    for name in config.task_names:
        with named_tables(config, tables_of(config, name)):
            whole.append(_read(config, base, name, dev=dev))
    check_shared(whole)
    return {task.name: _sampled(config, task) for task in whole}


def write_tasks(config: SequenceConfig, tasks: Iterable[SequenceTask], folder: Path) -> None:
    """Write both files of each task below ``folder``, where they are not there yet."""
    for task in tasks:
        settings = config.training(task.name)
        for rows, target in zip((task.data.train, task.data.eval), task.files(folder), strict=True):
            if not target.exists():
                copy_rows(rows, settings, task.data.form, target)


def _read(config: SequenceConfig, base: OpenBase, name: str, *, dev: bool) -> SequenceTask:
    """A task before sampling."""
    table, fraction = config.tasks[name], config.settings.dev_fraction
    settings = config.training(name, seed=config.settings.sample_seed)
    data, left_out = load_without(settings, base, table.leave_out_labels)
    notes: tuple[str, ...] = ()
    chosen_on = None
    if table.dev_data is not None:
        chosen_on, notes = _given_dev(config, base, name, settings, data)
    elif fraction:
        train, chosen_on, _ = split_rows(data.train, fraction, config.settings.sample_seed)
        data = replace(data, train=train)
    if dev and chosen_on is None:
        raise ConfigError(
            f"{config.file}: [tasks.{name}] has no rows to choose settings on",
            hint="give it dev_data, or set dev_fraction = 0.2 above the tables",
            unchanged=_UNCHANGED,
        )
    if dev and chosen_on is not None:
        data, notes = replace(data, eval=chosen_on), ()
    return SequenceTask(name, data, (len(data.train), len(data.eval)), left_out, notes)


def _given_dev(
    config: SequenceConfig, base: OpenBase, name: str, settings: TrainConfig, data: TaskData
) -> tuple[Any, tuple[str, ...]]:
    """The rows of ``dev_data``, and what is to be said where they are scored on too."""
    table = config.tasks[name]
    dev = load_without(replace(settings, eval_data=table.dev_data), base, table.leave_out_labels)[0].eval
    shared = set(dev.keys) & set(data.eval.keys)
    if not shared:
        return dev, ()
    same = set(dev.keys) == set(data.eval.keys)
    what = "holds the rows of eval_data" if same else f"shares {len(shared)} texts with eval_data"
    if "eval_data" not in config.settings.selection:
        raise DataError(
            f"{config.file}: [tasks.{name}] dev_data {what}: settings chosen on it are chosen on scored rows",
            hint='name other rows, or say so: selection = "on eval_data: ..."',
            unchanged=_UNCHANGED,
        )
    return dev, (f"{name}: dev_data {what}: the settings were chosen on the rows that are scored",)


def check_shared(tasks: Sequence[SequenceTask]) -> None:
    """Refuse rows to score on whose text any task of the sequence trains on.

    Raises:
        DataError: Naming how many there are, and both lines of the first pair.
    """
    trained: Mapping[str, tuple[SequenceTask, int]] = {
        key: (task, index) for task in reversed(tasks) for index, key in reversed([*enumerate(task.data.train.keys)])
    }
    for task in tasks:
        rows = task.data.eval
        shared = [index for index, key in enumerate(rows.keys) if key in trained]
        if shared:
            other, index = trained[rows.keys[shared[0]]]
            count = f"{len(shared)} rows repeat" if len(shared) > 1 else "a row repeats"
            raise DataError(
                f"task {task.name!r} is scored on texts that the sequence trains on: {count} one, the first in "
                f"{rows.where(shared[0])}, as {other.data.train.where(index)} (task {other.name!r})",
                hint="remove these rows from one of the files",
                unchanged=_UNCHANGED,
            )


def _sampled(config: SequenceConfig, task: SequenceTask) -> SequenceTask:
    settings, data = config.settings, task.data
    train, evaluation = (
        sample_rows(rows, len(rows) if most is None else most, settings.sample_seed)
        for rows, most in ((data.train, settings.max_train_rows), (data.eval, settings.max_eval_rows))
    )
    lost = sorted(set(data.labels) - set(train.labels))
    if lost:
        raise DataError(
            f"task {task.name!r}: no row of the label {lost[0]!r} is among the {len(train)} sampled training rows",
            hint=f"raise max_train_rows, or set [tasks.{task.name}] leave_out_labels = [{json.dumps(lost[0])}]",
            unchanged=_UNCHANGED,
        )
    return replace(task, data=replace(data, train=train, eval=evaluation))
