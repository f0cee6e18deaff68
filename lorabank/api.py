"""Everything lorabank does: one function per use case, settings in, a frozen result out.

Nothing here prints. Paths are bank folders; a user's mistake raises a `lorabank.core.errors.LorabankError`. Importing
this module loads neither torch nor a database library: each function imports what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabank.core.observer import Observer, SilentObserver

if TYPE_CHECKING:
    from lorabank.bank.backup import BackupResult
    from lorabank.bank.database import UpgradeResult
    from lorabank.bank.gc import GcResult
    from lorabank.bank.repair import RepairResult
    from lorabank.bank.restore import RestoreResult
    from lorabank.bank.snapshot import Snapshot
    from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, InitConfig, PredictConfig, TrainConfig
    from lorabank.core.records import Finding
    from lorabank.evaluation.gates import GateResult
    from lorabank.workflows.checkup import Checkup
    from lorabank.workflows.results import (
        AddTaskResult,
        ComposeResult,
        DemoResult,
        ExportResult,
        MatrixReport,
        Prediction,
        SequencePlan,
        SequenceResult,
        TaskPlan,
    )

_SILENT = SilentObserver()


def init_bank(path: str | Path, config: InitConfig, observer: Observer = _SILENT) -> Snapshot:
    """Make a bank.

    Args:
        path: A folder that does not exist or is empty.
        config: The base model and the task type.
        observer: Gets one notice.

    Raises:
        ExistsError: There is a bank already.
        NotFoundError: There is no such base model.
        MissingExtraError: The base model is neither on the disk nor reachable.
    """
    from lorabank.core.config import InitConfig, validate
    from lorabank.workflows.bases import init_bank as run

    return run(path, validate(InitConfig, asdict(config)), observer).snapshot()


def plan_task(path: str | Path, name: str, config: TrainConfig, init: InitConfig | None = None) -> TaskPlan:
    """What `add_task` would do: settings, rows, tokens, steps, sizes. Nothing is written."""
    from lorabank.workflows.train import plan_task as run

    return run(path, name, config, init)


def add_task(
    path: str | Path,
    name: str,
    config: TrainConfig | None,
    *,
    init: InitConfig | None = None,
    resume: bool = False,
    restart: bool = False,
    observer: Observer = _SILENT,
) -> AddTaskResult:
    """Train the adapter of a new task on top of the earlier ones; the bank is made when there is none.

    Args:
        path: The bank's folder.
        name: Name of the task: ``[a-z0-9][a-z0-9._-]*``.
        config: The settings; None with ``resume`` takes those of the interrupted run.
        init: Base model of a bank that is made now.
        resume: Go on with an interrupted run.
        restart: Throw an interrupted run away and begin anew.
        observer: Gets notices and the losses.

    Raises:
        ExistsError: The name is taken.
        DataError: A row is wrong, or too many would be cut.
        BusyError: Another process is changing the bank.
        DivergedError: A loss or a trained tensor is not finite; nothing entered the bank.
    """
    from lorabank.workflows.train import add_task as run

    return run(path, name, config, init=init, resume=resume, restart=restart, observer=observer)


def compose(path: str | Path, config: ComposeConfig, observer: Observer = _SILENT) -> ComposeResult:
    """Fit and store a composition of the bank's adapters.

    Raises:
        NotFoundError: There is no bank, no task, or no sample that the mode needs.
        ExistsError: The name is taken and ``replace`` is off.
    """
    from lorabank.bank.bank import Bank
    from lorabank.workflows.compose import compose as run

    return run(Bank.open(path), config, observer)


def evaluate(path: str | Path, config: EvalConfig, observer: Observer = _SILENT) -> tuple[MatrixReport, ...]:
    """Score the state as trained and compositions; cells that were scored before are read, not computed."""
    from lorabank.bank.bank import Bank
    from lorabank.core.config import EvalConfig, validate
    from lorabank.workflows.evaluate import evaluate as run

    return run(Bank.open(path), validate(EvalConfig, asdict(config)), observer)


def predict(path: str | Path, config: PredictConfig, observer: Observer = _SILENT) -> tuple[Prediction, ...]:
    """Label texts with a composition, or with the state as trained for a task that is named."""
    from lorabank.bank.bank import Bank
    from lorabank.workflows.predict import predict as run

    return run(Bank.open(path), config, observer)


def generate(path: str | Path, config: GenerateConfig, observer: Observer = _SILENT) -> tuple[Prediction, ...]:
    """Let a language model answer prompts with a composition, or as trained for a task that is named."""
    from lorabank.bank.bank import Bank
    from lorabank.workflows.predict import generate as run

    return run(Bank.open(path), config, observer)


def check_gates(reports: Sequence[MatrixReport], gates: Sequence[str]) -> tuple[GateResult, ...]:
    """Compare scalars with conditions such as ``backward_transfer>=-0.02``; each gate is checked on each report."""
    from lorabank.workflows.sharing import check_gates as run

    return run(reports, gates)


def save_plot(report: MatrixReport, path: str | Path) -> Path:
    """Draw a matrix as a heat-map: PNG or SVG by the file's ending."""
    from lorabank.workflows.sharing import save_plot as run

    return run(report, Path(path))


def save_csv(report: MatrixReport, path: str | Path) -> Path:
    """Write a matrix as CSV."""
    from lorabank.workflows.sharing import save_csv as run

    return run(report, Path(path))


def overview(path: str | Path) -> Snapshot:
    """Everything in the bank: base, tasks, data sets, adapters, compositions."""
    from lorabank.bank.bank import Bank

    return Bank.open(path).snapshot()


def show(path: str | Path, name: str) -> dict[str, Any]:
    """One task or composition with all that is known of it."""
    from lorabank.workflows.upkeep import show as run

    return run(path, name)


def remove(path: str | Path, name: str, *, cascade: bool = False, dry_run: bool = False) -> tuple[str, ...]:
    """Remove a task or composition; its files go with `gc`.

    Returns:
        The names that were (or with ``dry_run`` would be) removed.

    Raises:
        ExistsError: A composition needs the task and ``cascade`` is off.
    """
    from lorabank.bank.bank import Bank

    return Bank.open(path).remove(name, cascade=cascade, dry_run=dry_run)


def export(
    path: str | Path, name: str, target: str | Path, *, own: bool = False, check: str | None = None
) -> ExportResult:
    """Write a task or a manual composition as one PEFT folder.

    Args:
        path: The bank's folder.
        name: A task, or a composition of mode ``manual``.
        target: A folder that does not exist or is empty.
        own: Of a task only its own adapter, without the adapters that were active while it was trained.
        check: A server (``"vllm"``) that must take it.

    Raises:
        ConfigError: The composition is no single adapter.
        IncompatibleError: The server would refuse it, or compute something else.
    """
    from lorabank.workflows.export import export as run

    return run(path, name, Path(target), own=own, check=check)


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
    observer: Observer = _SILENT,
) -> AddTaskResult:
    """Take a PEFT LoRA folder into the bank as a task.

    Args:
        path: The bank's folder.
        source: A local PEFT folder with ``adapter_model.safetensors``, or ``OWNER/NAME[@REVISION]`` on the hub.
        task: Name of the new task.
        config: Its data: rows to measure it on and to route by.
        labels: A classifier's labels in the order of its head's outputs; default: the data's labels in order.
        init: Base model of a bank that is made now.
        base_fingerprint: First digits of the fingerprint of the weights that it was trained on; needed where its
            config does not name the bank's base model.
        part: Number of a task in a folder of O-LoRA's reference implementation, from 1; default: all of them, summed.
        ignore_unknown: Pass over fields of its config that no version of PEFT is known to write.
        observer: Gets notices.

    Raises:
        NotFoundError: There is no such folder, or an earlier part is not in the bank.
        DataError: The folder's tensors are not exactly those of a LoRA adapter with a head.
        IncompatibleError: Its shapes do not fit the base, or it was trained on another one.
    """
    from lorabank.core.config import InitConfig
    from lorabank.workflows.import_ import import_adapter as run

    return run(
        path,
        source,
        task,
        config=config,
        labels=labels,
        init=init or InitConfig(),
        base_fingerprint=base_fingerprint,
        part=part,
        ignore_unknown=ignore_unknown,
        observer=observer,
    )


def verify(path: str | Path, *, full: bool = False, part: tuple[int, int] | None = None) -> tuple[Finding, ...]:
    """Check rows and files; ``full`` reads every byte, ``part=(n, t)`` those of one of t parts. Nothing is changed."""
    from lorabank.bank.bank import Bank

    return tuple(Bank.open(path).verify(full=full, part=part))


def gc(path: str | Path, *, dry_run: bool = False, grace_hours: float = 24.0) -> GcResult:
    """Delete files that nothing refers to and that are older than the grace."""
    from lorabank.bank.bank import Bank

    return Bank.open(path).gc(dry_run=dry_run, grace_hours=grace_hours)


def report(path: str | Path, target: str | Path) -> Path:
    """Write one HTML file with tasks, compositions, stored matrices and lineage; it needs no network."""
    from lorabank.workflows.sharing import report as run

    return run(path, Path(target))


def doctor(path: str | Path, *, full: bool = False) -> Checkup:
    """Facts for a bug report (versions, devices, base model, the bank's state), warnings, and the bank's findings.

    Args:
        path: The bank's folder; there need be no bank.
        full: Read every file of the bank.
    """
    from lorabank.workflows.checkup import doctor as run

    return run(path, full=full)


def repair(path: str | Path, *, source: str | Path | None = None) -> RepairResult:
    """Mend what can be mended without losing anything.

    What dead operations left is swept, damaged files go to `quarantine/`, good copies are fetched by digest, and tasks
    that still lack a file are set aside, so that all others can be used.

    Args:
        path: The bank's folder.
        source: A copy of the bank, or an exported folder, to fetch good files from.

    Raises:
        BusyError: An operation is under way.
        DamagedError: The database itself is damaged: `restore` puts a copy back.
    """
    from lorabank.bank.layout import Layout
    from lorabank.bank.repair import repair as run

    return run(Layout(Path(path)), None if source is None else Path(source))


def backup(path: str | Path, target: str | Path | None = None) -> BackupResult:
    """Copy the database into the bank's `backups/` (the newest three stay), or the whole bank into another folder.

    Args:
        path: The bank's folder.
        target: A folder that does not exist, is empty, or holds an earlier copy of this bank, which is brought up to
            date. The copy is itself a bank.

    Raises:
        DamagedError: A row or a file of the bank is damaged; the copies that there are stay as they are.
        ExistsError: The folder holds something else.
    """
    from lorabank.bank.backup import back_up_database, copy_bank
    from lorabank.bank.layout import Layout

    layout = Layout(Path(path))
    return back_up_database(layout) if target is None else copy_bank(layout, Path(target))


def restore(path: str | Path, backup: str | Path, *, incomplete: bool = False, dry_run: bool = False) -> RestoreResult:
    """Put a backup back; it is checked first, and the database that is there is kept aside.

    Args:
        path: The bank's folder; with a copy of a whole bank it need not exist.
        backup: A database in the bank's `backups/` (path or name), or a copy of the whole bank.
        incomplete: Put it back although files that it names are gone.
        dry_run: Check it and say what would change.

    Raises:
        NotFoundError: There is no such backup.
        DamagedError: It is damaged, or files that it names are gone.
        IncompatibleError: It is of another bank, or a newer version wrote it.
        BusyError: An operation is under way.
    """
    from lorabank.bank.layout import Layout
    from lorabank.bank.restore import restore as run

    return run(Layout(Path(path)), Path(backup), incomplete=incomplete, dry_run=dry_run)


def upgrade(path: str | Path, *, dry_run: bool = False) -> UpgradeResult:
    """Bring an older bank to this version's schema, after a backup."""
    from lorabank.bank.database import upgrade_database

    return upgrade_database(path, dry_run=dry_run)


def demo(
    target: str | Path, *, seed: int = 0, epochs: float | None = None, observer: Observer = _SILENT
) -> DemoResult:
    """The main job on four small real tasks: sequential training beside O-LoRA, three compositions, one table."""
    from lorabank.demo.run import demo as run

    return run(Path(target), seed=seed, epochs=epochs, observer=observer)


def plan_sequence(
    file: str | Path,
    *,
    out: str | Path | None = None,
    size: str | None = None,
    dev: bool = False,
    only: Sequence[str] = (),
    observer: Observer = _SILENT,
) -> SequencePlan:
    """What `run_sequence` would do, and its protocol card so far. Nothing is written."""
    from lorabank.workflows.sequence import plan_sequence as run
    from lorabank.workflows.sequence_job import prepare_sequence

    return run(prepare_sequence(file, out=out, size=size, dev=dev, only=only, observer=observer))


def run_sequence(
    file: str | Path,
    *,
    out: str | Path | None = None,
    size: str | None = None,
    dev: bool = False,
    only: Sequence[str] = (),
    observer: Observer = _SILENT,
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
    from lorabank.workflows.sequence import run_sequence as run
    from lorabank.workflows.sequence_job import prepare_sequence

    return run(prepare_sequence(file, out=out, size=size, dev=dev, only=only, observer=observer), observer)
