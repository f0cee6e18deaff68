"""``fold``: the adapters of several tasks replaced by one of bounded rank, as one change of the bank.

Each task gets a new version. The first one's adapter holds the folded factors; every other one holds its head beside a
zero adapter and has the first one in its context, so that the state of each is the folded adapter. What later tasks
were trained on top of stays as it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.bank.catalog.commits import Version
from lorabank.bank.failures import taken
from lorabank.bank.objects.layout import check_name
from lorabank.bank.operations import Operation
from lorabank.bank.snapshot import Snapshot
from lorabank.bank.upkeep.remarks import remarks
from lorabank.compose.base import Fitted, Member, checked_mode
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig, FoldConfig
from lorabank.core.errors import ConfigError, GateError, IncompatibleError, LorabankError, at_work
from lorabank.core.machine.packages import package_versions
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord, TaskRecord
from lorabank.core.shelves import MERGERS, SUMMING
from lorabank.core.states import (
    ANSWERS,
    FOLDED,
    FOLDED_INTO,
    SELECTOR,
    TUNER,
    grown,
    needed,
    own_state,
    refuse_tuners,
)
from lorabank.exchange.peft_folder import combined_files, read_adapter
from lorabank.models.bases.loading import recorded_weights, resolve_device
from lorabank.models.mixing.runtime import Runtime
from lorabank.training.factor_groups import overlap_report
from lorabank.workflows.assemble import RuntimeSettings, read_members, stack_of
from lorabank.workflows.compose import superseded_by
from lorabank.workflows.learning.folded import FoldPlan, FoldResult
from lorabank.workflows.learning.folders import stored_files
from lorabank.workflows.open_bank import OpenBank

_UNCHANGED = "the bank was not changed"


def fold(
    opened: OpenBank,
    names: Sequence[str],
    into: str,
    config: FoldConfig,
    observer: Observer,
    *,
    note: str | None = None,
    tags: Sequence[str] = (),
) -> FoldResult:
    """Merge, truncate, measure, and store new versions of the tasks and a composition of them."""
    written = remarks(note, tags)
    began = time.perf_counter()
    with opened.bank.reserve("fold", into, {**asdict(config), **written}) as operation:
        snapshot = opened.refresh()
        tasks = _chosen(snapshot, names)
        _check(snapshot, tasks, config, into)
        with at_work(f"fold {into!r}"):
            folded, fitted, scores = _folded(opened, snapshot, tasks, into, config, observer)
        if (reason := _lost_too_much(scores, config.tolerance)) is not None:
            raise reason
        versions = _versions(opened, operation, snapshot, tasks, folded, config, observer, began)
        made = CompositionRecord(
            name=into,
            mode=SUMMING,
            members=tuple(task.name for task in tasks),
            adapters=tuple(adapter.digest for _, adapter, _ in versions),
            parameters={"merger": ComposeConfig.merger},
            objects={},
        )
        gone = {name: again for task in tasks for name, again in superseded_by(snapshot, task.position).items()}
        stored = operation.commit_fold(versions, made)
    return _told(opened, snapshot, tasks, stored, folded, fitted, scores, gone, observer)


def plan_fold(opened: OpenBank, names: Sequence[str], into: str, config: FoldConfig, observer: Observer) -> FoldPlan:
    """What `fold` would do and what it would cost each task; nothing is stored, the scores neither."""
    check_name(into)
    snapshot = opened.refresh()
    _check_free(snapshot, into)
    tasks = _chosen(snapshot, names)
    _check(snapshot, tasks, config, into)
    with at_work(f"fold {into!r}"):
        folded, fitted, scores = _folded(opened, snapshot, tasks, into, config, observer, store=False)
    refused = _lost_too_much(scores, config.tolerance)
    return FoldPlan(
        tasks=tuple(task.name for task in tasks),
        into=into,
        rank=max(map(len, folded.A.values())),
        report=_merge_report(fitted),
        scores=scores,
        refused=None if refused is None else refused.message,
        bytes_before=_bytes(snapshot, tasks),
        kept=_kept(snapshot, snapshot, tasks),
        superseded=tuple(dict.fromkeys(name for task in tasks for name in superseded_by(snapshot, task.position))),
    )


def _check_free(snapshot: Snapshot, name: str) -> None:
    """As a reservation refuses a name that is in use."""
    if snapshot.position_of(name) is not None:
        raise taken("task", name, kind="fold")
    if any(made.name == name for made in (*snapshot.compositions, *snapshot.damaged_compositions)):
        raise taken("composition", name, kind="fold")


def _chosen(snapshot: Snapshot, names: Sequence[str]) -> list[TaskRecord]:
    """The tasks of some names, each once, in sequence order."""
    if not names:
        raise ConfigError("no task to fold is given", hint="name the tasks", unchanged=_UNCHANGED)
    chosen = {snapshot.task(name).position for name in names}
    return [task for task in snapshot.tasks if task.position in chosen]


def _check(snapshot: Snapshot, tasks: Sequence[TaskRecord], config: FoldConfig, into: str) -> None:
    """Refuse what a fold would answer otherwise than its tasks do, whatever its rank.

    Raises:
        IncompatibleError: A task was trained under attention, continues another or was continued, or stands on an
            adapter that is not folded.
    """
    adapters = {task.name: snapshot.adapter_of(task.name) for task in tasks}
    refuse_tuners(adapters.values(), "a fold sums adapters by their factors A and B", hint="leave it out")
    digests = {adapter.digest for adapter in adapters.values()}
    continued = {one.metrics.get("continued_from") for one in snapshot.by_position.values()}
    in_use = {snapshot.adapter_of(task.name).digest: task.name for task in snapshot.tasks}
    over = config.over or MERGERS.load(config.merger).over
    for name, adapter in adapters.items():
        if SELECTOR in adapter.objects:
            raise _refused(f"task {name!r} was trained under attention over other adapters, which a fold would lose")
        if grown(adapter):
            raise _refused(f"task {name!r} shares one growing head, which only the newest adapter goes with")
        if adapter.metrics.get("continued_from") or adapter.digest in continued:
            raise _refused(
                f"the adapter of task {name!r} and another one continue each other: a sum would count it twice"
            )
        below = [digest for digest in own_state(adapter) if digest not in digests]
        if missing := sorted({in_use[digest] for digest in below if digest in in_use}):
            again = Command("fold", *adapters, *missing, "--into", into)
            what = f"task {name!r} was trained on top of {', '.join(map(repr, missing))}"
            raise _refused(f"{what}, which stays as it is", "fold both", [again])
        if below and over == "adapters":
            newest = f"weights={tasks[-1].name}=1"
            again = Command("fold", *adapters, "--into", into, "--over", "states", "--set", newest)
            removed = f"task {name!r} was trained on top of a task that was removed"
            raise _refused(removed, "fold the state of the newest one", [again])


def _refused(message: str, hint: str = "leave it out", commands: Sequence[Command] = ()) -> IncompatibleError:
    return IncompatibleError(message, hint=hint, commands=list(commands), unchanged=_UNCHANGED)


def _folded(
    opened: OpenBank,
    snapshot: Snapshot,
    tasks: Sequence[TaskRecord],
    into: str,
    config: FoldConfig,
    observer: Observer,
    *,
    store: bool = True,
) -> tuple[LoraFactors, Fitted, list[dict[str, Any]]]:
    """The folded adapter, what its merge tells, and each task's score before and after.

    What the tasks' own states score is stored, unless ``store`` is off: `eval` finds it.
    """
    from lorabank.workflows.evaluate import scores_beside

    bank = opened.bank
    rank = config.max_rank or max(snapshot.adapter_of(task.name).r for task in tasks)
    settings = (*config.set, f"max_rank={rank}")
    shared = {name: getattr(config, name) for name in ("merger", "over", "batch_size", "seed", "device")}
    composing = ComposeConfig(mode=SUMMING, name=into, set=settings, stages="last", **shared)
    composer = checked_mode(composing)
    running = RuntimeSettings(device=config.device, dtype="float32", batch_size=config.batch_size)

    def runtime() -> Runtime:
        return opened.runtime(running, observer.notice)

    members = read_members(bank, snapshot, tasks, samples=True)
    with _proposing(tasks, into):
        fitted = composer.fit(members, composing, runtime, observer)
    names, digests = (tuple(getattr(member, of) for member in members) for of in ("task", "adapter"))
    record = CompositionRecord(into, SUMMING, names, digests, fitted.parameters, {})
    scores, _ = scores_beside(opened, record, fitted, members, config.device, observer, store=store)
    loaded = composer.load(record, fitted.objects, members, runtime)
    stack = stack_of(bank, _in_states(members))
    folded = loaded.as_adapter(tasks[-1].position, stack, recorded_weights(snapshot.base))
    assert folded is not None  # truncated to a rank
    return folded, fitted, scores


@contextmanager
def _proposing(tasks: Sequence[TaskRecord], into: str) -> Iterator[None]:
    """Where an error of the block proposes another composition, it proposes to fold the tasks by their sum."""
    try:
        yield
    except LorabankError as error:
        again = Command("fold", *(task.name for task in tasks), "--into", into)
        error.commands = tuple(again if "compose" in command else command for command in error.commands)
        raise


def _in_states(members: Sequence[Member]) -> list[str]:
    return list(dict.fromkeys(digest for member in members for digest in member.state))


def _lost_too_much(scores: Sequence[dict[str, Any]], tolerance: float) -> GateError | None:
    """The error where a score falls by more than the tolerance."""
    worst = max(scores, key=lambda told: told["before"] - told["after"])
    if (lost := worst["before"] - worst["after"]) <= tolerance:
        return None
    change = f"{worst['before']:.4g} to {worst['after']:.4g}"
    return GateError(
        f"the score of task {worst['task']!r} falls by {lost:.4g} ({change}), above --tolerance {tolerance:g}",
        hint="use a larger --max-rank or --tolerance, another --merger, or fold fewer tasks",
        unchanged=_UNCHANGED,
    )


def _versions(
    opened: OpenBank,
    operation: Operation,
    snapshot: Snapshot,
    tasks: Sequence[TaskRecord],
    folded: LoraFactors,
    config: FoldConfig,
    observer: Observer,
    began: float,
) -> list[Version]:
    """The new version of each task, its adapter staged."""
    others = [snapshot.adapter_of(task.name) for task in snapshot.tasks if task not in tasks]
    summed = [adapter.digest for adapter in others if TUNER not in adapter.metrics]
    room = overlap_report(folded, stack_of(opened.bank, summed) if summed else None)
    versions: list[Version] = []
    for task in tasks:
        below = versions[0][1].digest if versions else None
        factors = _zero(folded) if below else folded
        digest = operation.stage_adapter(_files(opened, snapshot, task, factors, observer))
        old = snapshot.adapter_of(task.name)
        into = {FOLDED_INTO: below} if below else {}
        rank = max(map(len, factors.A.values()))
        adapter = old._replace(
            digest=digest,
            r=rank,
            lora_alpha=float(rank),
            use_rslora=False,
            target_modules=tuple(sorted(factors.A)),
            strategy=FOLDED,
            penalties={},
            context=(below,) if below else (),
            steps=0,
            wall_seconds=time.perf_counter() - began,
            device=str(resolve_device(config.device)),
            bytes=0,
            files={},
            versions=package_versions(),
            metrics={**old.metrics, ANSWERS: "own", "folded": old.digest, **into, **room},
            created_at="",
            objects={role: blob for role, blob in old.objects.items() if role != SELECTOR},
        )
        version = task._replace(state="training", adapter=digest, replaces=task.position, created_at="")
        versions.append((version, adapter, [data for data in snapshot.datasets if data.task == task.name]))
    return versions


def _zero(folded: LoraFactors) -> LoraFactors:
    """An adapter that changes nothing, of rank 1 on one module: PEFT reads none without a module."""
    module, a = next(iter(folded.A.items()))
    b = folded.B[module]
    return LoraFactors({module: torch.zeros_like(a[:1])}, {module: torch.zeros_like(b[:, :1])}, {module: 1.0})


def _files(
    opened: OpenBank, snapshot: Snapshot, task: TaskRecord, factors: LoraFactors, observer: Observer
) -> dict[str, bytes]:
    """PEFT's files of new factors with a task's head."""
    _, head, config = read_adapter(opened.bank.verified_adapter(snapshot.adapter_of(task.name).digest))
    files = combined_files(
        factors,
        head,
        base_model=snapshot.base.name,
        task_type=task.task_type,
        head_modules=config["modules_to_save"] or (),
        weight=recorded_weights(snapshot.base),
    )
    return dict(stored_files(files, snapshot.base, len(task.labels), observer))


def _told(
    opened: OpenBank,
    before: Snapshot,
    tasks: Sequence[TaskRecord],
    made: CompositionRecord,
    folded: LoraFactors,
    fitted: Fitted,
    scores: list[dict[str, Any]],
    gone: dict[str, Command],
    observer: Observer,
) -> FoldResult:
    """What is in the bank now; each task's cell is stored the way ``eval`` computes it."""
    from lorabank.workflows.evaluate import own_score

    snapshot = opened.refresh()
    for task in tasks:
        own_score(opened, task.name, observer)
    return FoldResult(
        composition=made,
        tasks=tuple(snapshot.task(task.name) for task in tasks),
        rank=max(map(len, folded.A.values())),
        report=_merge_report(fitted),
        scores=scores,
        bytes_before=_bytes(before, tasks),
        bytes_after=_bytes(snapshot, tasks),
        kept=_kept(snapshot, before, tasks),
        superseded=gone,
    )


def _merge_report(fitted: Fitted) -> dict[str, Any]:
    return {name: fitted.report[name] for name in ("relative_error", "distance")}


def _kept(snapshot: Snapshot, before: Snapshot, tasks: Sequence[TaskRecord]) -> dict[str, tuple[str, ...]]:
    """Folded task whose old adapter stays, to the tasks of a snapshot that were trained on top of it."""
    old = {before.adapter_of(task.name).digest: task.name for task in tasks}
    on_top = {
        task.name: set(needed(snapshot.adapter_of(task.name)))
        for task in snapshot.tasks
        if task.name not in old.values()
    }
    needing = {name: tuple(task for task in on_top if digest in on_top[task]) for digest, name in old.items()}
    return {name: later for name, later in needing.items() if later}


def _bytes(snapshot: Snapshot, tasks: Sequence[TaskRecord]) -> int:
    return sum(snapshot.adapter_of(task.name).bytes for task in tasks)
