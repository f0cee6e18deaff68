"""``add-task``: data, adapter, statistics and score of a new task, as one change of the bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabank.bank.objects.layout import check_name
from lorabank.bank.operations import Operation, holds_checkpoint
from lorabank.bank.progress import SCORING, STORING, ProgressFile
from lorabank.bank.snapshot import Snapshot
from lorabank.bank.upkeep.remarks import remarks
from lorabank.core.commands import Command
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.errors import BusyError, ConfigError, DataError, IncompatibleError, LorabankError, MissingExtraError
from lorabank.core.machine import distributed as processes
from lorabank.core.machine.packages import package_versions
from lorabank.core.observer import Observer, SilentObserver
from lorabank.core.records import AdapterRecord, DatasetRecord, TaskRecord
from lorabank.core.settings import validate
from lorabank.core.states import ANSWERS, TUNER
from lorabank.core.task_kinds import task_kind
from lorabank.data.loading import TaskData
from lorabank.data.methods import chosen_form
from lorabank.models.facts.curves import ROLE
from lorabank.training.methods import check_here, chosen_strategy, filled_in
from lorabank.workflows.bases import future_base, open_or_init
from lorabank.workflows.compose import superseded_by
from lorabank.workflows.learning.folders import stored_files, trained_files
from lorabank.workflows.learning.known_rows import known_rows
from lorabank.workflows.learning.one_head import grown_labels, head_before, under_one_head
from lorabank.workflows.learning.past import (
    KEY,
    check_past,
    digests_of,
    earlier_adapters,
    moved_on,
    past_of,
    recorded_run,
    restart_command,
)
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import AddTaskResult
from lorabank.workflows.task_data import (
    as_asked,
    dataset_records,
    found_in_data,
    load_data,
    recorded_bad_rows,
    recorded_settings,
    settled,
    task_statistics,
    text_facts,
)

if TYPE_CHECKING:
    from lorabank.training.job import TrainedAdapter, TrainJob
    from lorabank.training.tracking import Tracking


def add_task(
    opened: OpenBank,
    name: str,
    config: TrainConfig | None,
    *,
    init: InitConfig | None,
    resume: bool,
    restart: bool,
    observer: Observer,
    note: str | None = None,
    tags: Sequence[str] = (),
    replace: bool = False,
) -> AddTaskResult:
    """Train a task's adapter and put it into the bank, whole or not at all.

    Several processes train together; the main one alone changes the bank, scores and is heard. Each returns the same.
    """
    from lorabank.training.tracking import measured, tracked

    check_name(name)
    written = remarks(note, tags)
    processes.join()
    observer = SilentObserver() if processes.rank() else observer
    with ExitStack() as change:
        held: list[tuple[Operation, bool]] = []

        def begin() -> tuple[Path, int | None, TrainConfig, TaskData]:
            operation, created, (settings, data) = _reserve(
                opened,
                name,
                config,
                init or InitConfig(),
                written,
                change,
                resume=resume,
                restart=restart,
                replace=replace,
                observer=observer,
            )
            held.append((operation, created))
            return operation.work, operation.config.get("replaces"), settings, data

        work, replaces, settings, data = processes.from_main(begin)
        for line in data.told:
            observer.notice(line)
        opened.release()  # training needs the room of what answered before
        snapshot = opened.refresh().without(replaces)
        progress = change.enter_context(ProgressFile(work if held else None))
        tracking = change.enter_context(
            tracked(Path(opened.path), snapshot.base, name, settings, resume=resume, observer=observer)
        )
        known = known_rows(opened.bank, snapshot, data.eval, observer)
        again = restart_command(name, settings, restart=True) if resume else None
        job, trained = _train(opened, snapshot, name, work, settings, data, tracking, progress, again, observer)

        def commit() -> AddTaskResult:
            operation, created = held[0]
            superseded = superseded_by(opened.refresh(), replaces)
            progress.phase(STORING)
            stored = commit_trained(
                opened, operation, settings, data, job, trained, known, observer, lambda: progress.phase(SCORING)
            )
            tracking.log(measured(name, stored[3]))
            told = found_in_data(data)
            return AddTaskResult(*stored, bank=str(opened.path), bank_created=created, **told, superseded=superseded)

        return processes.from_main(commit)


def _reserve(
    opened: OpenBank,
    name: str,
    config: TrainConfig | None,
    init: InitConfig,
    written: dict[str, Any],
    change: ExitStack,
    *,
    resume: bool,
    restart: bool,
    replace: bool,
    observer: Observer,
) -> tuple[Operation, bool, tuple[TrainConfig, TaskData]]:
    """The reserved name, whether the bank is new, and what is to be trained on which rows.

    What goes wrong after the name was reserved gives it back through ``change``.
    """
    found = opened.refresh() if opened.exists else None
    before = found.without(found.position_of(name)) if found and replace else found
    given = _given(opened, config, init, before, observer)
    if given is None and not resume:
        raise ConfigError(
            "no training data is given",
            commands=[Command("add-task", name, "--data", "FILE")],
            unchanged="nothing was changed",
        )
    created = open_or_init(opened, init, observer) if given and not resume and not restart else False
    bank = opened.bank
    if restart:
        bank.discard(name)
    if resume:
        operation = change.enter_context(bank.resume("add-task", name))
        operation.config |= written
        return operation, created, _same_run(opened, operation, given)
    assert given is not None
    snapshot = opened.refresh()
    old = snapshot.position_of(name) if replace else None
    head_before(snapshot.without(old), given[0].head)
    past = _past(snapshot.without(old), given[0])
    written = written if old is None else written | {"replaces": old}
    operation = change.enter_context(bank.reserve("add-task", name, _stored(*given, past) | written))
    # A change may fall between the look and the reservation; from here on no other process writes.
    if _past(opened.refresh().without(old), given[0]) != past:
        raise BusyError(
            "another process changed the bank meanwhile",
            hint="the same command again",
            unchanged="the bank was not changed",
        )
    return operation, created, given


def _train(
    opened: OpenBank,
    snapshot: Snapshot,
    name: str,
    work: Path,
    config: TrainConfig,
    data: TaskData,
    tracking: Tracking,
    progress: ProgressFile,
    restart: Command | None,
    observer: Observer,
) -> tuple[TrainJob, TrainedAdapter]:
    """Train with what the bank holds; nothing of it is changed. A run that is resumed has a command to restart it."""
    from lorabank.exchange.peft_folder import read_head
    from lorabank.training.job import TrainJob
    from lorabank.training.reservoir import kept_numbers
    from lorabank.training.run import train_adapter
    from lorabank.workflows.assemble import read_stack
    from lorabank.workflows.learning.advice import characters_per_token, poor_fit
    from lorabank.workflows.learning.replayed import read_objects, read_replayed

    if not task_kind(snapshot.base.task_type).labelled:
        observer.notice(as_asked(data))
    bank, earlier, strategy = opened.bank, earlier_adapters(snapshot), chosen_strategy(config)
    before = head_before(snapshot, config.head)
    labels, replayed = grown_labels(before, data.labels), read_replayed(bank, snapshot, strategy)
    if advice := poor_fit(characters_per_token(opened.base, data)):
        observer.notice(advice)
    job = TrainJob(
        base=opened.base,
        config=config,
        strategy=strategy,
        texts=data.train.texts,
        targets=data.train.labels,
        labels=labels,
        template=data.prompt_template,
        held_texts=data.held.texts if data.held else (),
        held_targets=data.held.labels if data.held else (),
        scoring=chosen_form(config, data.form, data.scoring)[1],
        replayed=under_one_head(replayed, labels) if before else replayed,
        earlier_head=read_head(bank.verified_adapter(snapshot.adapter_of(before.name).digest)) if before else {},
        kept=kept_numbers(len(data.train), strategy.kept(len(data.train)), task=name, seed=config.seed),
        objects=read_objects(bank, earlier, strategy),
        earlier=lambda: read_stack(bank, earlier),
        context=strategy.context(earlier),
        continued=strategy.continued(earlier),
        work=work,
        number=len(snapshot.by_position),
        resume=restart is not None,
        restart=restart,
        tracking=tracking,
        progress=progress,
    )
    return job, train_adapter(job, observer)


def commit_trained(
    opened: OpenBank,
    operation: Operation,
    config: TrainConfig,
    data: TaskData,
    job: TrainJob,
    trained: TrainedAdapter,
    known: dict[str, int],
    observer: Observer,
    entered: Callable[[], object] = lambda: None,
) -> tuple[TaskRecord, AdapterRecord, tuple[DatasetRecord, ...], dict[str, Any]]:
    """Stage the adapter with its statistics, make the task part of the bank, and score it; see `commit_and_score`."""
    config = settled(config, data, trained.max_length)
    base = job.base.record
    loaded = job.base.load(device=config.device, dtype=config.base_dtype)
    statistics, others = task_statistics(loaded, data.train, config)
    others |= {ROLE: trained.curve.to_bytes()} if trained.curve else {}
    files: Mapping[str, bytes] = trained_files(base, trained, config)
    if trained.tuned is None:
        files = stored_files(files, base, len(job.labels), observer)
    digest = operation.stage_adapter(files)
    tuner = config.variant if trained.tuned else None
    said = ("continued_from", job.continued), ("known_rows", known), (ANSWERS, job.answers), (TUNER, tuner)
    facts = {key: value for key, value in said if value}
    adapter = AdapterRecord(
        digest=digest,
        task=operation.name,
        r=trained.tuned.r if trained.tuned else config.r,
        lora_alpha=trained.tuned.lora_alpha if trained.tuned else config.lora_alpha,
        use_rslora=config.use_rslora,
        target_modules=trained.target_modules,
        strategy=config.strategy,
        penalties=trained.penalties,
        context=job.context,
        seed=config.seed,
        steps=trained.steps,
        wall_seconds=trained.wall_seconds,
        device=trained.device,
        bytes=0,
        head_digest=trained.head_digest,
        files={},
        versions=package_versions(),
        config=recorded_settings(config, data),
        metrics={**trained.metrics, **facts, **text_facts(data), **recorded_bad_rows(data)},
        objects={role: operation.stage_blob(value) for role, value in (trained.objects | others).items()},
    )
    task = TaskRecord(
        name=operation.name,
        position=0,
        task_type=base.task_type,
        labels=job.labels,
        state="training",
        adapter=digest,
        statistics=operation.stage_blob(statistics),
        prompt_template=data.prompt_template and str(data.prompt_template),
    )
    cut, dropped = trained.metrics["rows_cut"], trained.metrics["rows_dropped"]
    datasets = dataset_records(operation, data, config, cut, dropped, replayable=len(job.kept))
    return commit_and_score(opened, operation, task, adapter, datasets, observer, entered)


def commit_and_score(
    opened: OpenBank,
    operation: Operation,
    task: TaskRecord,
    adapter: AdapterRecord,
    datasets: Sequence[DatasetRecord],
    observer: Observer,
    entered: Callable[[], object] = lambda: None,
) -> tuple[TaskRecord, AdapterRecord, tuple[DatasetRecord, ...], dict[str, Any]]:
    """Make a task part of the bank and compute its own cell the way ``eval`` does, so that ``eval`` finds it.

    ``entered`` is called when the task is in the bank.

    Returns:
        What is stored now: the task, its adapter, its data sets; and its score.
    """
    from lorabank.workflows.evaluate import own_score

    stored = operation.commit_task(task, adapter, datasets)
    entered()
    score = own_score(opened, stored.name, observer)
    after = opened.snapshot
    kept = tuple(dataset for dataset in after.datasets if dataset.task == stored.name)
    return stored, after.adapter_of(stored.name), kept, score


def _past(snapshot: Snapshot, config: TrainConfig) -> dict[str, Any]:
    return past_of(snapshot, chosen_strategy(config))


def _stored(config: TrainConfig, data: TaskData, past: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must find again: settings, the rows they led to, and what it was begun on top of."""
    return {"config": asdict(config), **digests_of(data), KEY: past}


def _given(
    opened: OpenBank, config: TrainConfig | None, init: InitConfig, before: Snapshot | None, observer: Observer
) -> tuple[TrainConfig, TaskData] | None:
    """Settings that were given, checked, and the rows they lead to; read before anything is changed.

    What the base alone decides is refused before the rows are read. `before` is the bank as the task meets it.
    """
    if config is None:
        return None
    from lorabank.training.planning import check_fit, check_warmup, plan_adapter, planned_steps
    from lorabank.workflows.learning.replayed import rows_before

    check_here(config)
    config = filled_in(config)
    check_past(before, chosen_strategy(config))
    base = future_base(opened, config, init, observer)
    check_fit(base, config, len(earlier_adapters(before)))
    data = load_data(config, base)
    most = len(data.train) + chosen_strategy(config).in_epoch(rows_before(before))  # packs are fewer than their rows
    check_warmup(planned_steps(most, config), config)
    if before is None:  # no bank is made on a base that cannot be trained
        plan_adapter(base, config, len(data.labels))
    return config, data


def _same_run(
    opened: OpenBank, operation: Operation, given: tuple[TrainConfig, TaskData] | None
) -> tuple[TrainConfig, TaskData]:
    """The settings and rows of the interrupted run; settings given again must be the same, and so must the past."""
    settings, rows = recorded_run(operation.name, operation.config)
    stored = validate(TrainConfig, settings, where="the interrupted run")
    if given:
        differ = [key for key, value in asdict(given[0]).items() if value != getattr(stored, key)]
        if differ:
            raise ConfigError(
                f"--resume takes the settings of the interrupted run, but {', '.join(differ)} differ",
                unchanged="the interrupted run is still there",
                hint="resume with its own settings, or add --restart to start again with the new ones",
                commands=[Command("add-task", operation.name, "--resume")],
            )
    try:
        check_here(stored)
    except LorabankError as error:
        error.unchanged = "the interrupted run is still there"
        if not isinstance(error, MissingExtraError):  # whose hint says what to install
            error.hint = "resume it where it was begun, or begin again with --restart and other settings"
        raise
    data = load_data(stored, opened.base)
    found = digests_of(data)
    if any(found.get(split) != digest for split, digest in rows.items()):
        raise DataError(
            f"{stored.data} is no longer what the interrupted run was trained on",
            unchanged="the interrupted run is still there",
            commands=[restart_command(operation.name, stored, restart=True)],
        )
    snapshot = opened.refresh().without(operation.config.get("replaces"))
    moved = moved_on(operation.config, _past(snapshot, stored), snapshot)
    if moved is not None:
        kept = holds_checkpoint(operation.work)
        raise IncompatibleError(
            f"add-task {operation.name!r} cannot be resumed, since the bank is another one: {moved}",
            unchanged="the interrupted run is still there" if kept else "the bank was not changed",
            commands=[restart_command(operation.name, stored, restart=kept)],
        )
    return stored, data
