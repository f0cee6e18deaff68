"""A bank that stays open: its base model and the model that answers stay in memory from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, Self, TypeVar

from lorabank.core.arguments import checked
from lorabank.core.config import (
    ComposeConfig,
    EvalConfig,
    FoldConfig,
    GenerateConfig,
    InitConfig,
    LoralibConfig,
    PredictConfig,
    TrainConfig,
)
from lorabank.core.machine.turns import Turns
from lorabank.core.observer import BARS, Listener, Observer

if TYPE_CHECKING:
    from lorabank.bank.snapshot import Snapshot
    from lorabank.workflows.learning.folded import FoldPlan, FoldResult
    from lorabank.workflows.learning.found import StreamResult
    from lorabank.workflows.results import (
        AddTaskResult,
        AnswersFile,
        CompareResult,
        ComposeResult,
        MatrixReport,
        Prediction,
    )

P = ParamSpec("P")
R = TypeVar("R")


def _alone(method: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
    """A method that runs in an open session of this process, one call at a time."""

    @wraps(method)
    def call(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with session._turns.taken():
            return method(session, *args, **kwargs)

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
        self._turns = Turns(path, self._opened.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release all models; the session can no longer be used. Closing twice does nothing.

        If another thread has a call under way, that call finishes first and then releases them.
        """
        self._turns.end()

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
            replace: Supersede a task of this name, with the compositions that hold it, until `lorabank.api.undo`.

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
    def stream(
        self,
        config: TrainConfig,
        *,
        lines: BufferedIOBase | None = None,
        init: InitConfig | None = None,
        prefix: str = "stream",
        resume: bool = False,
        found: Listener = lambda task: None,
        observer: Observer = BARS,
    ) -> StreamResult:
        """Learn labelled texts in their order, each once, and find the tasks among them (Online-LoRA).

        Args:
            config: The settings; strategy and head are those of a stream, and there are no epochs.
            lines: JSON lines to read in the place of the file ``config.data``.
            init: Base model of a bank that is made now.
            prefix: The tasks are called ``PREFIX-1``, ``PREFIX-2``, ...
            resume: Pass the rows that the bank's stream took before.
            found: Called with each task when it is in the bank.
            observer: Gets notices and the losses.

        Raises:
            ConfigError: The base is a language model, or the bank's tasks have a head each.
            DataError: A row is bad, or the rows of a resumed stream are others.
            NotFoundError: There is no such file, or no stream to resume.
        """
        from lorabank.workflows.learning.stream import stream

        return stream(
            self._opened,
            config,
            init=init or InitConfig(),
            lines=lines,
            prefix=prefix,
            resume=resume,
            found=found,
            observer=observer,
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
    def fold(
        self,
        tasks: Sequence[str],
        into: str,
        config: FoldConfig,
        observer: Observer = BARS,
        *,
        note: str | None = None,
        tags: Sequence[str] = (),
    ) -> FoldResult:
        """Replace the adapters of some tasks by one of bounded rank, once it is measured what that costs each of them.

        Args:
            tasks: Their names.
            into: Name of the composition of them that is stored with it.
            config: Rank, merger and tolerance.
            observer: Gets notices and progress.
            note: As in `compose`.
            tags: As in `compose`.

        Raises:
            GateError: The score of a task would fall by more than the tolerance.
            IncompatibleError: A task stands on an adapter that is not folded, or its state is not a sum.
            NotFoundError: There is no bank, no such task, or a task keeps no evaluation rows.
            ExistsError: The name is taken.
        """
        from lorabank.workflows.learning.fold import fold

        return fold(self._opened, tasks, into, config, observer, note=note, tags=tags)

    @checked
    @_alone
    def plan_fold(self, tasks: Sequence[str], into: str, config: FoldConfig, observer: Observer = BARS) -> FoldPlan:
        """What `fold` would do, with each task's score before and after. Nothing is stored."""
        from lorabank.workflows.learning.fold import plan_fold

        return plan_fold(self._opened, tasks, into, config, observer)

    @checked
    @_alone
    def evaluate(self, config: EvalConfig, observer: Observer = BARS) -> tuple[MatrixReport, ...]:
        """Score the state as trained and compositions; cells that were scored before are read, not computed."""
        from lorabank.workflows.evaluate import evaluate

        return evaluate(self._opened, config, observer)

    @checked
    @_alone
    def compare(self, one: str, other: str) -> CompareResult:
        """Two tasks' own adapters side by side: principal angles, overlap, interference, and whether they are equal.

        Raises:
            NotFoundError: There is no such task.
            ConfigError: Both are the same task.
        """
        from lorabank.workflows.compare import compare

        return compare(self._opened, one, other)

    @checked
    @_alone
    def predict(
        self, texts: Iterable[str] | None = None, config: PredictConfig = PredictConfig(), *, observer: Observer = BARS
    ) -> tuple[Prediction, ...]:
        """Label texts with a composition, or with the state as trained for a task that is named.

        Args:
            texts: The texts, any iterable of strings; those of ``config.data``, a file, come after them.
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

        return answer_file(
            self._opened, Path(target), texts or (), config, form=format, overwrite=overwrite, observer=observer
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
        loralib: LoralibConfig | None = None,
        as_lora: int | None = None,
        observer: Observer = BARS,
        note: str | None = None,
        tags: Sequence[str] = (),
        replace: bool = False,
    ) -> AddTaskResult:
        """Take an adapter from elsewhere into the bank as a task: LoRA, DoRA, or another tuner of PEFT.

        Args:
            source: A PEFT folder, ``OWNER/NAME[@REVISION]`` on the hub, or a state dict of loralib as safetensors.
            task: Name of the new task.
            config: Its data: rows to measure it on and to route by.
            labels: A classifier's labels in the order of its head's outputs; default: the data's labels in order.
            init: Base model of a bank that is made now.
            base_fingerprint: First digits of the fingerprint of its base model, where its config names another name.
            part: Number of a task in a folder that O-LoRA saved, from 1; default: the sum of all of them.
            ignore_unknown: Skip fields of its config that no version of PEFT is known to write.
            loralib: What a checkpoint of loralib does not hold.
            as_lora: Rank of the LoRA adapter that is made of another tuner of PEFT; default: it stays what it is.
            observer: Gets notices.
            note: What the task is about, for people.
            tags: Words to find it by, spelt like names.
            replace: As in `add_task`.

        Raises:
            NotFoundError: There is no such folder, or an earlier part is not in the bank.
            DataError: Its tensors are not exactly those of a LoRA adapter with a head.
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
            loralib=loralib or LoralibConfig(),
            as_lora=as_lora,
            observer=observer,
            note=note,
            tags=tags,
            replace=replace,
        )
