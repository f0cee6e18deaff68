"""``compose``: a named composition, fitted and stored as one change of the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lorabank.bank.failures import taken
from lorabank.bank.objects.layout import check_name
from lorabank.bank.snapshot import Snapshot
from lorabank.bank.upkeep.remarks import remarks
from lorabank.compose.base import Composer, Fitted, Member, checked_mode, chosen_method, with_its_settings
from lorabank.core.commands import ADD_TASK, Command
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError, NotFoundError, at_work
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord, EvaluationRecord, Lineage, TaskRecord
from lorabank.core.shelves import COMPOSERS, ROUTING
from lorabank.core.states import IMPORTED, TUNER, needed, refuse_tuners
from lorabank.models.mixing.runtime import Runtime
from lorabank.workflows.assemble import RuntimeSettings, evaluation_data, read_members
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import ComposeResult

_UNCHANGED = "nothing was changed"


def compose(
    opened: OpenBank, config: ComposeConfig, observer: Observer, *, note: str | None = None, tags: Sequence[str] = ()
) -> ComposeResult:
    """Fit a composition and store it."""
    written = remarks(note, tags)
    bank, snapshot = opened.bank, opened.refresh()
    composer, tasks = _checked(snapshot, config)
    name = config.name or config.mode
    settings = RuntimeSettings(device=config.device, dtype="float32", batch_size=config.batch_size)

    def runtime() -> Runtime:
        return opened.runtime(settings, observer.notice)

    with bank.reserve("compose", name, {**asdict(config), "replace": config.replace, **written}) as operation:
        members = read_members(bank, snapshot, tasks, samples=True)
        with at_work(f"composition {name!r}"):
            fitted = composer.fit(members, config, runtime, observer)
        record = CompositionRecord(
            name=name,
            mode=config.mode,
            members=tuple(member.task for member in members),
            adapters=tuple(member.adapter for member in members),
            parameters=fitted.parameters,
            objects={},
        )
        scores, cells = _scores(opened, record, fitted, members, config.device, observer)
        new = {role: operation.stage_blob(data) for role, data in fitted.objects.items()}
        objects = {**fitted.kept, **new}
        stored = operation.commit_composition(record._replace(objects=objects), replace=config.replace)
    bank.add_evaluations(cells)
    report = {**fitted.report, "scores": scores, "imported_adapters": _imported(snapshot, tasks)}
    return ComposeResult(stored, {name: value for name, value in report.items() if value not in (None, {}, [], ())})


def plan_compose(opened: OpenBank, config: ComposeConfig) -> tuple[str, ...]:
    """The members that `compose` would take, after the checks that come before its work."""
    snapshot, name = opened.refresh(), config.name or config.mode
    composer, tasks = _checked(snapshot, config)
    members = tuple(task.name for task in tasks)
    if (check := getattr(composer, "checked", None)) is not None:
        check(members, config)
    check_name(name)
    if snapshot.position_of(name) is not None:
        raise taken("task", name, kind="compose")
    others = (*snapshot.compositions, *snapshot.damaged_compositions)
    if not config.replace and any(made.name == name for made in others):
        raise taken("composition", name, kind="compose")
    return members


def _checked(snapshot: Snapshot, config: ComposeConfig) -> tuple[type[Composer], list[TaskRecord]]:
    """The mode and the members, in sequence order."""
    if not config.mode:
        raise ConfigError("no mode is given", hint=f"--mode {'|'.join(COMPOSERS)}", unchanged=_UNCHANGED)
    composer = checked_mode(config)
    tasks = _members(snapshot, config.tasks)
    _check_alone(snapshot, tasks, composer, config)
    return composer, tasks


def _check_alone(
    snapshot: Snapshot, tasks: Sequence[TaskRecord], composer: type[Composer], config: ComposeConfig
) -> None:
    """Refuse to sum adapters that have no factors; a router that picks one of them may have them."""
    if composer.routed and not (composer.shelf and chosen_method(composer.shelf, config).soft):
        return
    adapters = [snapshot.adapter_of(task.name) for task in tasks]
    others = ",".join(one.task for one in adapters if TUNER not in one.metrics)
    rest = [Command("compose", "--mode", config.mode, "--tasks", others)] if others else []
    which = f"router {config.router!r}" if composer.routed else f"mode {config.mode!r}"
    what = f"{which} sums adapters by their factors A and B"
    refuse_tuners(adapters, what, Command("compose", "--mode", ROUTING), *rest)


def _scores(
    opened: OpenBank,
    record: CompositionRecord,
    fitted: Fitted,
    members: Sequence[Member],
    device: str,
    observer: Observer,
) -> tuple[list[dict[str, Any]], list[EvaluationRecord]]:
    """What `scores_beside` gives, where it is asked for and the tasks' rows are there."""
    if not fitted.scored:
        return [], []
    from lorabank.workflows.evaluate import scores_beside

    try:
        evaluation_data(opened.snapshot)
    except NotFoundError as error:
        observer.notice(f"the members are not scored: {error.message}")
        return [], []
    return scores_beside(opened, record, fitted, members, device, observer)


def superseded_by(snapshot: Snapshot, position: int | None) -> dict[str, Command]:
    """The compositions that go with a version that is replaced, and how each is made again."""
    return {made.name: with_its_settings(made) for made in snapshot.holding(position)}


def _imported(snapshot: Snapshot, tasks: list[TaskRecord]) -> list[str]:
    """Tasks whose adapters answer in the composition and were trained elsewhere, so that nobody vouches for them."""
    adapters = snapshot.adapters
    answering = Lineage.union(needed(snapshot.adapter_of(task.name)) for task in tasks)
    return sorted(adapters[digest].task for digest in answering if adapters[digest].strategy == IMPORTED)


def _members(snapshot: Snapshot, chosen: str | None) -> list[TaskRecord]:
    """The tasks named, in sequence order; all of them by default."""
    if not snapshot.tasks:
        raise NotFoundError("the bank has no task to compose", commands=[ADD_TASK], unchanged=_UNCHANGED)
    if chosen is None:
        return list(snapshot.tasks)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    if not names:
        raise ConfigError("--tasks names no task", hint="--tasks a,b", unchanged=_UNCHANGED)
    named = {snapshot.task(name).name for name in names}
    return [task for task in snapshot.tasks if task.name in named]
