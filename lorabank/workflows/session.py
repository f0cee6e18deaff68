"""A bank that stays open: its base model and the model that answers stay in memory from one call to the next."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, Self, TypeVar

from lorabank.core.arguments import checked
from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.errors import BusyError, ConfigError
from lorabank.core.observer import BARS, Observer

if TYPE_CHECKING:
    from lorabank.bank.snapshot import Snapshot
    from lorabank.workflows.results import AddTaskResult, AnswersFile, ComposeResult, MatrixReport, Prediction

P = ParamSpec("P")
R = TypeVar("R")


def _alone(method: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
    """A method that runs in an open session of this process, one call at a time."""

    @wraps(method)
    def call(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
        session._enter()
        try:
            return method(session, *args, **kwargs)
        finally:
            if session._closed:  # by another thread, which left the models to this call
                session._opened.close()
            session._lock.release()

    return call


class Session:
    """An open bank: ``with lorabank.open("bank") as session: session.predict(["a text"])``.

    The base model is loaded by the first call that needs it and stays, as does the model that answers, until the
    bank's state or the settings change. What other processes change in the bank is seen by the next call. A
    session belongs to the process that opened it and does one thing at a time.

    Args:
        path: The bank's folder; the bank need not exist before `add_task`.

    Attributes:
        path: The same.
    """

    def __init__(self, path: str | Path) -> None:
        from lorabank.workflows.open_bank import OpenBank

        self.path = path
        self._opened = OpenBank(path)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release all models; the session can no longer be used. Closing twice does nothing.

        If another thread has a call under way, that call finishes first and then releases them.
        """
        self._closed = True
        if self._lock.acquire(blocking=False):
            self._opened.close()
            self._lock.release()

    @checked
    @_alone
    def refresh(self) -> Snapshot:
        """The bank's state now: base, tasks, data sets, adapters, compositions. The base stays loaded."""
        return self._opened.refresh()

    @checked
    @_alone
    def add_task(
        self,
        name: str,
        config: TrainConfig | None,
        *,
        init: InitConfig | None = None,
        resume: bool = False,
        restart: bool = False,
        observer: Observer = BARS,
        note: str | None = None,
        tags: Sequence[str] = (),
        replace: bool = False,
    ) -> AddTaskResult:
        """Train the adapter of a new task on top of the earlier ones; the bank is made when there is none.

        Args:
            name: Name of the task: ``[a-z0-9][a-z0-9._-]*``.
            config: The settings; None with ``resume`` takes those of the interrupted run.
            init: Base model of a bank that is made now.
            resume: Resume an interrupted run.
            restart: Discard an interrupted run and start again.
            observer: Gets notices and the losses.
            note: What the task is about, for people.
            tags: Words to find it by, spelt like names.
            replace: Let a task of this name be superseded in the commit, with the compositions that hold it;
                `lorabank.api.undo` brings them back.

        Raises:
            ExistsError: The name is taken and ``replace`` is off.
            DataError: A row is wrong, or too many would be truncated.
            BusyError: Another process is changing the bank.
            DivergedError: A loss or a trained tensor is not finite; nothing was added to the bank.
        """
        from lorabank.workflows.learning.train import add_task

        return add_task(
            self._opened,
            name,
            config,
            init=init,
            resume=resume,
            restart=restart,
            observer=observer,
            note=note,
            tags=tags,
            replace=replace,
        )

    @checked
    @_alone
    def compose(
        self, config: ComposeConfig, observer: Observer = BARS, *, note: str | None = None, tags: Sequence[str] = ()
    ) -> ComposeResult:
        """Fit and store a composition of the bank's adapters, with a note and tags as `add_task` takes them.

        Raises:
            NotFoundError: There is no bank, no task, or no sample that the mode needs.
            ExistsError: The name is taken and ``replace`` is off.
        """
        from lorabank.workflows.compose import compose

        return compose(self._opened, config, observer, note=note, tags=tags)

    @checked
    @_alone
    def evaluate(self, config: EvalConfig, observer: Observer = BARS) -> tuple[MatrixReport, ...]:
        """Score the state as trained and compositions; cells that were scored before are read, not computed."""
        from lorabank.workflows.evaluate import evaluate

        return evaluate(self._opened, config, observer)

    @checked
    @_alone
    def predict(
        self,
        texts: Iterable[str] | None = None,
        config: PredictConfig = PredictConfig(),
        *,
        observer: Observer = BARS,
    ) -> tuple[Prediction, ...]:
        """Label texts with a composition, or with the state as trained for a task that is named.

        Args:
            texts: The texts, in a list or anything else with strings one after the other; those of ``config.data``, a
                file, come after them.
            config: What answers.
            observer: Gets notices.

        Raises:
            ConfigError: There is no text, or neither a task nor a composition is named, and none is the default.
            NotFoundError: There is no bank, no such task or composition, or no file.
        """
        from lorabank.workflows.asking.predict import predict

        return predict(self._opened, texts or (), config, observer)

    @checked
    @_alone
    def generate(
        self,
        texts: Iterable[str] | None = None,
        config: GenerateConfig = GenerateConfig(),
        *,
        observer: Observer = BARS,
    ) -> tuple[Prediction, ...]:
        """Generate a language model's answers to prompts, with a composition, or as trained for a task that is named.

        Args:
            texts: The prompts, as those of `predict`.
            config: Which adapters answer, and how.
            observer: Gets notices.

        Raises:
            ConfigError: There is no prompt, or neither a task nor a composition is named, and none is the default.
            IncompatibleError: The bank's base is a classifier.
            NotFoundError: There is no bank, no such task or composition, or no file.
        """
        from lorabank.workflows.asking.predict import generate

        return generate(self._opened, texts or (), config, observer)

    @checked
    @_alone
    def answer_file(
        self,
        target: str | Path,
        texts: Iterable[str] | None = None,
        config: PredictConfig | GenerateConfig = PredictConfig(),
        *,
        format: Literal["jsonl", "csv", "tsv", "parquet"] | None = None,
        overwrite: bool = False,
        observer: Observer = BARS,
    ) -> AnswersFile:
        """Write the rows of a file with their answers: all columns, a row number, the answer, its task and its margin.

        Args:
            target: The file, which appears whole or not at all.
            texts: Texts, or `config.data` names a file of rows.
            config: What labels them; with `GenerateConfig`, what generates. With ``skip_bad`` bad rows are kept
                without an answer, and a column says why.
            format: Default: by the ending of ``target``.
            overwrite: Replace an existing file.
            observer: Gets notices and progress.

        Raises:
            ExistsError: The file exists.
            ConfigError: There is no text, or neither a task nor a composition is named, and none is the default.
            DataError: Rows are bad and not to be skipped.
        """
        from lorabank.workflows.asking.answer_rows import answer_file

        target = Path(target)
        return answer_file(
            self._opened, target, texts or (), config, form=format, overwrite=overwrite, observer=observer
        )

    @checked
    @_alone
    def import_adapter(
        self,
        source: str | Path,
        task: str,
        *,
        config: TrainConfig,
        labels: Sequence[str] | None = None,
        init: InitConfig | None = None,
        base_fingerprint: str | None = None,
        part: int | None = None,
        ignore_unknown: bool = False,
        observer: Observer = BARS,
        note: str | None = None,
        tags: Sequence[str] = (),
        replace: bool = False,
    ) -> AddTaskResult:
        """Take a PEFT LoRA folder into the bank as a task.

        Args:
            source: A local PEFT folder with ``adapter_model.safetensors``, or ``OWNER/NAME[@REVISION]`` on the hub.
            task: Name of the new task.
            config: Its data: rows to measure it on and to route by.
            labels: A classifier's labels in the order of its head's outputs; default: the data's labels in order.
            init: Base model of a bank that is made now.
            base_fingerprint: First digits of the fingerprint of the weights that it was trained on; needed where its
                config does not name the bank's base model.
            part: Number of a task in a folder of O-LoRA's reference implementation, from 1; default: all of them,
                summed.
            ignore_unknown: Skip fields of its config that no version of PEFT is known to write.
            observer: Gets notices.
            note: What the task is about, for people.
            tags: Words to find it by, spelt like names.
            replace: As in `add_task`.

        Raises:
            NotFoundError: There is no such folder, or an earlier part is not in the bank.
            DataError: The folder's tensors are not exactly those of a LoRA adapter with a head.
            IncompatibleError: Its shapes do not fit the base, or it was trained on another one.
        """
        from lorabank.workflows.carrying.import_adapter import import_adapter

        return import_adapter(
            self._opened,
            source,
            task,
            config=config,
            labels=labels,
            init=init or InitConfig(),
            base_fingerprint=base_fingerprint,
            part=part,
            ignore_unknown=ignore_unknown,
            observer=observer,
            note=note,
            tags=tags,
            replace=replace,
        )

    def _enter(self) -> None:
        """Begin a call.

        Raises:
            ConfigError: The session is closed, or belongs to another process: what a fork inherits of it,
                threads and a GPU's memory, does not work there.
            BusyError: Another call is under way.
        """
        again, unchanged = "lorabank.open(PATH) opens one", "nothing was changed"
        if self._closed:
            raise ConfigError(f"the session of {self.path} is closed", hint=again, unchanged=unchanged)
        if self._process != os.getpid():
            raise ConfigError(
                f"the session of {self.path} was opened in process {self._process}, this is process {os.getpid()}",
                hint=f"{again} in each process",
                unchanged=unchanged,
            )
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                f"the session of {self.path} is in the middle of another call, and handles one at a time",
                hint=f"{again} for each thread, or let the threads wait for each other",
                unchanged=unchanged,
            )
