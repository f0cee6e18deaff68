"""Everything lorabank does: one function per use case, settings in, a frozen result out.

Nothing here prints. Paths are bank folders; a user's mistake raises a `lorabank.core.errors.LorabankError`. Importing
this module loads neither torch nor a database library: each function imports what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorabank.core.arguments import checked, texts_in_settings
from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.observer import BARS, Observer
from lorabank.maintenance import backup as backup
from lorabank.maintenance import change_tags as change_tags
from lorabank.maintenance import doctor as doctor
from lorabank.maintenance import gc as gc
from lorabank.maintenance import history as history
from lorabank.maintenance import rename as rename
from lorabank.maintenance import repair as repair
from lorabank.maintenance import restore as restore
from lorabank.maintenance import set_note as set_note
from lorabank.maintenance import undo as undo
from lorabank.maintenance import upgrade as upgrade
from lorabank.maintenance import verify as verify
from lorabank.workflows.results import MatrixReport
from lorabank.workflows.session import Session

if TYPE_CHECKING:
    from lorabank.bank.snapshot import Snapshot
    from lorabank.evaluation.thresholds import GateResult
    from lorabank.sequences.results import SequencePlan, SequenceResult
    from lorabank.workflows.asking.answer_rows import AnsweredRows
    from lorabank.workflows.results import (
        AddTaskResult,
        AnswersFile,
        ComposeResult,
        DemoResult,
        ExportResult,
        Prediction,
        TaskPlan,
    )


@checked
def init_bank(path: str | Path, config: InitConfig, observer: Observer = BARS) -> Snapshot:
    """Make a bank.

    Args:
        path: A folder that does not exist or is empty.
        config: The base model and the task type.
        observer: Gets a notice where the bank lies on a network file system.

    Raises:
        ExistsError: There is a bank already.
        NotFoundError: There is no such base model.
        MissingExtraError: The base model is neither on the disk nor reachable.
    """
    from lorabank.workflows.bases import init_bank as run

    return run(path, config, observer).snapshot()


@checked
def plan_task(
    path: str | Path, name: str, config: TrainConfig, init: InitConfig | None = None, *, replace: bool = False
) -> TaskPlan:
    """What `add_task` would do: settings, rows, tokens, steps, sizes. Nothing is written."""
    from lorabank.workflows.learning.plan import plan_task as run
    from lorabank.workflows.open_bank import OpenBank

    return run(OpenBank(path), name, config, init, replace=replace)


@checked
def open(path: str | Path) -> Session:
    """Open a bank that stays open: the base model is loaded once for all that is done with it.

    Raises:
        NotFoundError: There is no bank.
        IncompatibleError: Its schema is newer, or older and must be upgraded.
        DamagedError: It cannot be read.
    """
    session = Session(path)
    session.refresh()
    return session


@checked
def add_task(
    path: str | Path,
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
    """As `Session.add_task`, in a session of its own."""
    rest: dict[str, Any] = {"init": init, "resume": resume, "restart": restart, "replace": replace}
    return Session(path).add_task(name, config, observer=observer, note=note, tags=tags, **rest)


@checked
def compose(
    path: str | Path,
    config: ComposeConfig,
    observer: Observer = BARS,
    *,
    note: str | None = None,
    tags: Sequence[str] = (),
) -> ComposeResult:
    """As `Session.compose`, in a session of its own."""
    return Session(path).compose(config, observer, note=note, tags=tags)


@checked
def evaluate(path: str | Path, config: EvalConfig, observer: Observer = BARS) -> tuple[MatrixReport, ...]:
    """As `Session.evaluate`, in a session of its own."""
    return Session(path).evaluate(config, observer)


@texts_in_settings
@checked
def predict(
    path: str | Path,
    texts: Iterable[str] | None = None,
    config: PredictConfig = PredictConfig(),
    *,
    observer: Observer = BARS,
) -> tuple[Prediction, ...]:
    """As `Session.predict`, in a session of its own; a loop of calls is faster in one that stays open."""
    return Session(path).predict(texts, config, observer=observer)


@texts_in_settings
@checked
def generate(
    path: str | Path,
    texts: Iterable[str] | None = None,
    config: GenerateConfig = GenerateConfig(),
    *,
    observer: Observer = BARS,
) -> tuple[Prediction, ...]:
    """As `Session.generate`, in a session of its own; a loop of calls is faster in one that stays open."""
    return Session(path).generate(texts, config, observer=observer)


@checked
def answer_rows(
    path: str | Path,
    texts: Iterable[str] | None = None,
    config: PredictConfig | GenerateConfig = PredictConfig(),
    *,
    observer: Observer = BARS,
) -> AnsweredRows:
    """Answer the rows of a file and keep all that they hold: what `answer_file` writes, a part at a time.

    Args:
        path: The bank's folder.
        texts: Texts, or `config.data` names a file of rows.
        config: Who labels them, or with `GenerateConfig` who generates.
        observer: Gets notices and progress.

    Returns:
        The columns, and an iterator over parts of the rows, which are computed while they are taken.
    """
    from lorabank.workflows.asking.answer_rows import answer_rows as run
    from lorabank.workflows.open_bank import OpenBank

    return run(OpenBank(path), texts or (), config, observer)


@checked
def answer_file(
    path: str | Path,
    target: str | Path,
    texts: Iterable[str] | None = None,
    config: PredictConfig | GenerateConfig = PredictConfig(),
    *,
    format: Literal["jsonl", "csv", "tsv", "parquet"] | None = None,
    overwrite: bool = False,
    observer: Observer = BARS,
) -> AnswersFile:
    """As `Session.answer_file`, in a session of its own."""
    session = Session(path)
    return session.answer_file(target, texts, config, format=format, overwrite=overwrite, observer=observer)


@checked
def check_gates(reports: Sequence[MatrixReport], gates: Sequence[str]) -> tuple[GateResult, ...]:
    """Compare scalars with conditions such as ``backward_transfer>=-0.02``; each gate is checked on each report."""
    from lorabank.workflows.publish import check_gates as run

    return run(reports, gates)


@checked
def save_plot(report: MatrixReport, path: str | Path) -> Path:
    """Draw a matrix as a heat-map: PNG or SVG by the file's ending."""
    from lorabank.workflows.publish import save_plot as run

    return run(report, Path(path))


@checked
def save_csv(report: MatrixReport, path: str | Path) -> Path:
    """Write a matrix as CSV."""
    from lorabank.workflows.publish import save_csv as run

    return run(report, Path(path))


@checked
def overview(path: str | Path) -> Snapshot:
    """Everything in the bank: base, tasks, data sets, adapters, compositions."""
    from lorabank.bank.bank import Bank

    return Bank.open(path).snapshot()


@checked
def resumable(path: str | Path) -> tuple[str, ...]:
    """Names of the interrupted trainings that `add_task` goes on with for ``resume``; none where there is no bank."""
    from lorabank.bank.bank import Bank
    from lorabank.bank.operations import RESUMABLE
    from lorabank.core.errors import NotFoundError

    try:
        operations = Bank.open(path).operations()
    except NotFoundError:
        return ()
    return tuple(one.name for one in operations if one.kind == RESUMABLE and not one.alive)


@checked
def show(path: str | Path, name: str) -> dict[str, Any]:
    """One task or composition with all that is known of it."""
    from lorabank.workflows.show import show as run

    return run(path, name)


@checked
def remove(path: str | Path, name: str, *, cascade: bool = False, dry_run: bool = False) -> tuple[str, ...]:
    """Remove a task or composition; its files go with `gc`.

    Returns:
        The names that were (or with ``dry_run`` would be) removed.

    Raises:
        ExistsError: A composition needs the task and ``cascade`` is off.
    """
    from lorabank.bank.bank import Bank

    return Bank.open(path).remove(name, cascade=cascade, dry_run=dry_run)


@checked
def export(
    path: str | Path,
    name: str,
    target: str | Path,
    *,
    state: Literal["now", "learnt"] | None = None,
    own: bool = False,
    check: str | None = None,
    tokenizer: bool = False,
) -> ExportResult:
    """Write a task or a manual composition as one PEFT folder.

    Args:
        path: The bank's folder.
        name: A task, or a composition of mode ``manual``.
        target: A folder that does not exist or is empty.
        state: Of a task ``"now"`` (default: what `predict` answers with) or ``"learnt"`` (right after its training).
        own: Of a task only its own adapter, without the adapters that were active while it was trained.
        check: A server (``"vllm"``) that must take it.
        tokenizer: Also write the base's tokenizer and chat template.

    Raises:
        ConfigError: The composition is no single adapter.
        IncompatibleError: PEFT or the server would refuse it, or compute something else.
        NotFoundError: The base model's configuration, by which PEFT's rules are applied, cannot be found.
    """
    from lorabank.workflows.carrying.export import export as run

    return run(path, name, Path(target), state=state, own=own, check=check, tokenizer=tokenizer)


@checked
def import_adapter(
    path: str | Path,
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
    """As `Session.import_adapter`, in a session of its own."""
    rest: dict[str, Any] = {"base_fingerprint": base_fingerprint, "part": part, "ignore_unknown": ignore_unknown}
    rest |= {"observer": observer, "note": note, "tags": tags, "replace": replace}
    return Session(path).import_adapter(source, task, config=config, labels=labels, init=init, **rest)


@checked
def report(path: str | Path, target: str | Path) -> Path:
    """Write one HTML file with tasks, compositions, stored matrices and lineage; it needs no network."""
    from lorabank.workflows.publish import report as run

    return run(path, Path(target))


@checked
def demo(target: str | Path, *, seed: int = 0, epochs: float | None = None, observer: Observer = BARS) -> DemoResult:
    """The main job on four small real tasks: sequential training beside O-LoRA, three compositions, one table."""
    from lorabank.demo.run import demo as run

    return run(Path(target), seed=seed, epochs=epochs, observer=observer)


@checked
def plan_sequence(
    file: str | Path,
    *,
    out: str | Path | None = None,
    size: str | None = None,
    dev: bool = False,
    only: Sequence[str] = (),
    observer: Observer = BARS,
) -> SequencePlan:
    """What `run_sequence` would do, and its protocol card so far. Nothing is written."""
    from lorabank.sequences.job import prepare_sequence
    from lorabank.sequences.run import plan_sequence as run

    return run(prepare_sequence(file, out=out, size=size, dev=dev, only=only, observer=observer))


@checked
def run_sequence(
    file: str | Path,
    *,
    out: str | Path | None = None,
    size: str | None = None,
    dev: bool = False,
    only: Sequence[str] = (),
    observer: Observer = BARS,
) -> SequenceResult:
    """Run an experiment: every strategy on every order and seed, composed and measured, and one table of it all.

    A run that was interrupted goes on where it stopped, in the middle of a training too.

    Args:
        file: The TOML file: docs/sequences.md.
        out: The folder of banks and results; default: the experiment's name.
        size: A table of the file's ``[sizes]`` that is laid over the rest.
        dev: Score on the rows that settings are chosen on, not on the evaluation rows.
        only: Strategies to run; all by default. Processes with different ones can share a folder.
        observer: Gets notices, an estimate of the time that is left, and progress.

    Raises:
        ConfigError: Keys or values of the file do not fit; all of them are named.
        DataError: A row is wrong, or a text that is scored on is trained on.
        ExistsError: The folder was begun with other settings.
        LorabankError: As `add_task`, `compose` and `evaluate`.
    """
    from lorabank.sequences.job import prepare_sequence
    from lorabank.sequences.run import run_sequence as run

    return run(prepare_sequence(file, out=out, size=size, dev=dev, only=only, observer=observer), observer)
