"""Everything lorabank does: one function per use case, settings in, a frozen result out.

Nothing here prints. Paths are bank folders; a user's mistake raises a `LorabankError`. Importing loads neither torch
nor SQLAlchemy. Methods of `Session` and `Bank` are here functions of the bank's folder, opened for one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorabank.bank.bank import Bank
from lorabank.core.arguments import by_path, checked, texts_in_settings
from lorabank.core.config import AdviseConfig, ComposeConfig, GenerateConfig, InitConfig, PredictConfig, TrainConfig
from lorabank.core.observer import BARS, Observer
from lorabank.workflows import publish
from lorabank.workflows.asking import chat as chatting
from lorabank.workflows.carrying import hub
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.session import Session

if TYPE_CHECKING:
    from lorabank.bank.history import Entry
    from lorabank.bank.snapshot import Snapshot
    from lorabank.bank.upkeep.backup import BackupResult
    from lorabank.bank.upkeep.repair import RepairResult
    from lorabank.bank.upkeep.restore import RestoreResult
    from lorabank.bank.upkeep.upgrade import UpgradeResult
    from lorabank.core.records import Finding
    from lorabank.sequences.results import SequencePlan, SequenceResult
    from lorabank.sequences.tradeoff import Tradeoff
    from lorabank.workflows.asking.answer_rows import AnsweredRows
    from lorabank.workflows.doctor import Checkup
    from lorabank.workflows.learning.advise import Advice
    from lorabank.workflows.results import DemoResult, ExportResult, TaskPlan


@checked
def init_bank(path: str | Path, config: InitConfig, observer: Observer = BARS) -> Snapshot:
    """Make a bank.

    Args:
        path: A folder that does not exist or is empty.
        config: The base model and the task type.
        observer: Receives a notice if the bank is on a network file system.

    Raises:
        ExistsError: There is already a bank.
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

    return run(OpenBank(path), name, config, init, replace=replace)


@checked
def advise(
    path: str | Path,
    config: TrainConfig,
    how: AdviseConfig = AdviseConfig(),
    *,
    init: InitConfig | None = None,
    observer: Observer = BARS,
) -> Advice:
    """Try variants and starts on a task's rows, held-out ones scored; see `lorabank.workflows.learning.advise`."""
    from lorabank.workflows.learning.advise import advise as run

    return run(OpenBank(path), config, how, init=init, observer=observer)


@checked
def plan_compose(path: str | Path, config: ComposeConfig) -> tuple[str, ...]:
    """Check a composition and name its members, as `compose` would; nothing is fitted. Errors as of `compose`."""
    from lorabank.workflows.compose import plan_compose as run

    return run(OpenBank(path), config)


@checked
def open(path: str | Path) -> Session:
    """Open a bank that stays open: the base model is loaded once for all that is done. Errors as of `Bank.open`."""
    session = Session(path)
    session.refresh()
    return session


add_task = by_path(Session, Session.add_task)
stream = by_path(Session, Session.stream)
import_adapter = by_path(Session, Session.import_adapter)
compose = by_path(Session, Session.compose)
fold = by_path(Session, Session.fold)
plan_fold = by_path(Session, Session.plan_fold)
evaluate = by_path(Session, Session.evaluate)
compare = by_path(Session, Session.compare)
predict = texts_in_settings(by_path(Session, Session.predict))
generate = texts_in_settings(by_path(Session, Session.generate))
answer_file = by_path(Session, Session.answer_file)

chat = by_path(OpenBank, chatting.chat)
check_gates = checked(publish.check_gates)
save_plot = checked(publish.save_plot)
save_curve = checked(publish.save_curve)
save_csv = checked(publish.save_csv)

push = by_path(OpenBank, hub.push)
pull = by_path(Path, hub.pull)

remove = by_path(Bank.open, Bank.remove)
rename = by_path(Bank.open, Bank.rename)
set_note = by_path(Bank.open, Bank.set_note)
change_tags = by_path(Bank.open, Bank.change_tags)
undo = by_path(Bank.open, Bank.undo)
gc = by_path(Bank.open, Bank.gc)


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
        config: What labels them; with `GenerateConfig`, what generates answers.
        observer: Gets notices and progress.

    Returns:
        The columns, and an iterator over parts of the rows, which are computed while they are taken.
    """
    from lorabank.workflows.asking.answer_rows import answer_rows as run

    return run(OpenBank(path), texts or (), config, observer)


@checked
def overview(path: str | Path) -> Snapshot:
    """Everything in the bank: base, tasks, data sets, adapters, compositions."""
    return Bank.open(path).snapshot()


@checked
def resumable(path: str | Path) -> tuple[str, ...]:
    """Names of the interrupted trainings that `add_task` can resume; none where there is no bank."""
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
def export(
    path: str | Path,
    name: str,
    target: str | Path,
    *,
    state: Literal["now", "learnt"] | None = None,
    own: bool = False,
    check: str | None = None,
    tokenizer: bool = False,
    merged: bool | Literal["gguf"] = False,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
) -> ExportResult:
    """Write a task or a manual composition as one PEFT folder, or as a whole model with it merged.

    Args:
        path: The bank's folder.
        name: A task, or a composition of mode ``manual``.
        target: A folder that does not exist or is empty.
        state: For a task ``"now"`` (default: what `predict` answers with) or ``"learnt"`` (right after its training).
        own: For a task, only its own adapter, without the adapters that were active while it was trained.
        check: A server (``"vllm"``, ``"sglang"``, ``"lorax"``) that must take it; the result says how to start it.
        tokenizer: Also write the base's tokenizer and chat template.
        merged: Write a checkpoint of transformers instead, or ``"gguf"``: llama.cpp's file with a Modelfile of Ollama.
        dtype: Of that model's weights; default: the base's.

    Raises:
        ConfigError: The composition is not a single adapter.
        IncompatibleError: PEFT or the server would refuse it, or compute something else; or it cannot be merged.
        NotFoundError: The base model's configuration, by which PEFT's rules are applied, cannot be found.
    """
    from lorabank.workflows.carrying.export import export as run

    return run(
        path, name, Path(target), state=state, own=own, check=check, tokenizer=tokenizer, merged=merged, dtype=dtype
    )


@checked
def report(
    path: str | Path, target: str | Path, *, beside: Sequence[str | Path] = (), tables: Sequence[str | Path] = ()
) -> Path:
    """Write one HTML file with tasks, compositions, stored matrices and lineage; it needs no network.

    Args:
        path: A bank, or the folder of a sequence with results.
        target: The file.
        beside: Others to compare it with; the file then holds what was measured in all of them.
        tables: Files for the table of results as well: ``.csv`` or ``.tex``.
    """
    from lorabank.sequences.report import write_report as run

    return run([Path(path), *map(Path, beside)], Path(target), [Path(table) for table in tables])


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
    """Run an experiment: every strategy on every order and seed, composed and measured; interrupted, it resumes.

    Args:
        file: The TOML file: docs/sequences.md.
        out: The folder of banks and results; default: the experiment's name.
        size: A table of the file's ``[sizes]`` that is applied on top of the rest.
        dev: Score on the rows that settings are chosen on, not on the evaluation rows.
        only: Strategies to run; all by default. Processes with different ones can share a folder.
        observer: Gets notices, an estimate of the remaining time, and progress.

    Raises:
        ConfigError: Keys or values of the file do not fit; all of them are named.
        DataError: A row is wrong, or a text that is scored on is trained on.
        ExistsError: The folder was started with other settings.
    """
    from lorabank.sequences.job import prepare_sequence
    from lorabank.sequences.run import run_sequence as run

    return run(prepare_sequence(file, out=out, size=size, dev=dev, only=only, observer=observer), observer)


@checked
def tradeoff(folders: Sequence[str | Path]) -> Tradeoff:
    """Learning against forgetting, with the Pareto front, of folders of sequences and of banks.

    Raises:
        NotFoundError: A folder is neither, or no matrix was measured after every stage.
    """
    from lorabank.sequences.tradeoff import tradeoff as run

    return run(folders)


@checked
def verify(path: str | Path, *, full: bool = False, part: tuple[int, int] | None = None) -> tuple[Finding, ...]:
    """Check rows and files; ``full`` reads every byte, ``part=(n, t)`` those of one of t parts. Nothing is changed.

    With ``full`` the weights of the base model are read too, where they are on this disk.
    """
    from lorabank.workflows.verify import verify

    return verify(path, full=full, part=part)


@checked
def history(path: str | Path) -> tuple[Entry, ...]:
    """Every change of the bank, newest first; ``next`` marks the one that `undo` reverts."""
    from lorabank.bank.history import read_history

    return tuple(read_history(Bank.open(path).catalog))


@checked
def doctor(path: str | Path, *, full: bool = False) -> Checkup:
    """Facts for a bug report, warnings, and findings of the bank, which need not exist; ``full`` reads every file."""
    from lorabank.workflows.doctor import doctor as run

    return run(path, full=full)


@checked
def repair(path: str | Path, *, source: str | Path | None = None) -> RepairResult:
    """Repair what can be repaired without data loss.

    What dead operations left is swept, damaged files go to `quarantine/`, good copies are fetched by digest, and tasks
    that still lack a file are set aside, so that all others can be used.

    Args:
        path: The bank's folder.
        source: A copy of the bank, or an exported folder, to fetch good files from.

    Raises:
        BusyError: An operation is under way.
        DamagedError: The database itself is damaged: `restore` restores a copy.
    """
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.upkeep.repair import repair as run

    return run(Layout(Path(path)), None if source is None else Path(source))


@checked
def backup(path: str | Path, target: str | Path | None = None) -> BackupResult:
    """Copy the database into the bank's `backups/` (the newest three are kept), or the whole bank into another folder.

    Args:
        path: The bank's folder.
        target: A folder that does not exist, is empty, or holds an earlier copy of this bank, which is brought up to
            date. The copy is itself a bank.

    Raises:
        DamagedError: A row or a file of the bank is damaged; the existing copies are unchanged.
        ExistsError: The folder holds something else.
    """
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.upkeep.backup import back_up_database, copy_bank

    layout = Layout(Path(path))
    return back_up_database(layout) if target is None else copy_bank(layout, Path(target))


@checked
def restore(path: str | Path, backup: str | Path, *, incomplete: bool = False, dry_run: bool = False) -> RestoreResult:
    """Restore a backup; it is checked first, and the current database is kept aside.

    Args:
        path: The bank's folder; with a copy of a whole bank it need not exist.
        backup: A database in the bank's `backups/` (path or name), or a copy of the whole bank.
        incomplete: Restore it even if files that it names are gone.
        dry_run: Check it and say what would change.

    Raises:
        NotFoundError: There is no such backup.
        DamagedError: It is damaged, or files that it names are gone.
        IncompatibleError: It is of another bank, or a newer version wrote it.
        BusyError: An operation is under way.
    """
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.upkeep.restore import restore as run

    return run(Layout(Path(path)), Path(backup), incomplete=incomplete, dry_run=dry_run)


@checked
def upgrade(path: str | Path, *, dry_run: bool = False) -> UpgradeResult:
    """Bring an older bank to this version's schema, after a backup."""
    from lorabank.bank.upkeep.upgrade import upgrade_database

    return upgrade_database(path, dry_run=dry_run)
