"""One training's run in an experiment tracker, by transformers' own callback for it.

The run gets a name (``bank/task``), lorabank's settings beside those of transformers, and stays open after the
training until the task's score is known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lorabank.core.config import TrainConfig
from lorabank.core.observer import Observer, SilentObserver
from lorabank.core.records import BaseModelRecord

_SILENT = SilentObserver()
_FOLDER = "runs"
_FOLDER_VARIABLE = "TENSORBOARD_LOGGING_DIR"

_RUN_IDS: dict[str, Callable[[Any], Any]] = {
    "mlflow": lambda callback: callback._ml_flow.active_run().info.run_id,
    "tensorboard": lambda callback: callback.logging_dir,
    "wandb": lambda callback: callback._wandb.run.id,
}
"""Tracker to how its callback knows the run; where none is here, or it does not know, the run's name stands for it."""


@dataclass
class TrackedArguments(TrainingArguments):
    """Arguments that also tell lorabank's settings: every tracker takes its configuration from ``to_dict``.

    Attributes:
        lorabank: Name to a plain value.
    """

    lorabank: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The arguments, and each setting as ``lorabank_NAME``."""
        told: dict[str, Any] = TrainingArguments.to_dict(self)
        return told | {f"lorabank_{name}": value for name, value in told.pop("lorabank").items()}


class Tracking:
    """The run of one training, until the task was scored; without a tracker nothing happens.

    Args:
        name: The tracker, or ``"none"``.
        bank: What the bank is called.
        task: The task.
        settings: What the run's configuration tells beside transformers' arguments.
        resume: Whether an interrupted training is resumed.
        observer: Gets a notice where files are written.
    """

    def __init__(
        self,
        name: str = "none",
        *,
        bank: str = "",
        task: str = "",
        settings: Mapping[str, Any] = MappingProxyType({}),
        resume: bool = False,
        observer: Observer = _SILENT,
    ) -> None:
        self.name = name
        self.run_name = f"{bank}/{task}"
        self.settings = {**settings, "bank": bank, "task": task}
        self.callback = None if name == "none" else _KeptOpen(INTEGRATION_TO_CALLBACK[name]())
        if self.callback is not None and name == "tensorboard":
            self.callback.inner.logging_dir = folder = _folder(bank, task, resume)
            observer.notice(f"tensorboard writes to {folder}; to look at it: tensorboard --logdir {_root()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the run, if it was begun and is not ended."""
        if self.callback is not None:
            self.callback.close()

    @property
    def run(self) -> dict[str, str] | None:
        """The tracker's name and its id of the run, for the adapter's record; None without a tracker."""
        if self.callback is None:
            return None
        try:
            identifier = _RUN_IDS[self.name](self.callback.inner)
        except (AttributeError, LookupError):
            identifier = None
        return {"name": self.name, "run": str(identifier or self.run_name)}

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log what was measured after the training."""
        if self.callback is not None:
            self.callback.log(metrics)


def tracked(
    bank: Path, base: BaseModelRecord, task: str, config: TrainConfig, *, resume: bool, observer: Observer
) -> Tracking:
    """The run of the experiment tracker that the settings name.

    Args:
        bank: The bank's folder, whose name the bank has there.
        base: Its base model.
        task: The task.
        config: The settings, which the run's configuration tells.
        resume: As of `Tracking`.
        observer: As of `Tracking`.
    """
    settings = {**asdict(config), "base": base.name, "base_fingerprint": base.fingerprint}
    called = bank.resolve().name
    return Tracking(config.report_to, bank=called, task=task, settings=settings, resume=resume, observer=observer)


def measured(task: str, score: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker is told of a task's score."""
    found = {f"eval_{task}_{score['metric']}": float(score["value"])}
    return found if score["labels"] is None else {**found, f"eval_{task}_macro_f1": score["labels"].macro_f1}


class _KeptOpen:
    """A tracker's callback that hears everything of the training but its end."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._seen: tuple[Any, ...] | None = None

    def __getattr__(self, event: str) -> Any:
        return getattr(self.inner, event)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._seen = args, state, control
        return self.inner.on_train_begin(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Not yet: the score is still to come."""

    def log(self, metrics: Mapping[str, float]) -> None:
        if self._seen is not None:
            self.inner.on_log(*self._seen, logs=dict(metrics))

    def close(self) -> None:
        if self._seen is not None:
            seen, self._seen = self._seen, None
            self.inner.on_train_end(*seen)


def _root() -> str:
    return os.path.expanduser(os.environ.get(_FOLDER_VARIABLE) or _FOLDER)


def _folder(bank: str, task: str, resume: bool) -> str:
    """``runs/BANK/TASK``, or the next that is free; a resumed training continues the last one."""
    first = Path(_root()).absolute() / bank / task
    last, free = first, first
    for number in count(2):
        if not free.exists():
            return str(last if resume else free)
        last, free = free, first.with_name(f"{task}-{number}")
    raise AssertionError("unreachable")
