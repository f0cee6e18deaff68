"""What ``eval`` asks a router beside the scores: how sure it was, what it confuses, and what gives its tasks away."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorabank.bank.snapshot import Snapshot
from lorabank.compose.routed import no_posterior
from lorabank.core.commands import Command
from lorabank.core.config import EvalConfig
from lorabank.core.errors import ConfigError
from lorabank.core.observer import Observer
from lorabank.core.records import TaskRecord
from lorabank.core.shelves import ROUTING
from lorabank.data.rows import Rows
from lorabank.evaluation.routing import calibration
from lorabank.evaluation.routing.audit import Routes, RoutingAudit, audit_of
from lorabank.evaluation.routing.stripping import names_of, strip
from lorabank.evaluation.run import Filled, Subject


def check_routed(subject: Subject, config: EvalConfig) -> None:
    """Refuse questions about routing of a subject that does not route.

    Raises:
        ConfigError: The subject is given the task of each text.
    """
    asked = [name for name in ("abstain", "audit") if getattr(config, name)]
    if asked and subject.task_id == "given":
        raise ConfigError(
            f"--{asked[0]} is about routed texts, and {subject.name} is given the task of each text",
            hint="name a composition that routes, or make one",
            commands=[Command("compose", "--mode", ROUTING)],
            unchanged="nothing was computed",
        )


def with_confidence(
    subject: Subject,
    tasks: Sequence[TaskRecord],
    filled: Filled,
    again: Callable[[Sequence[tuple[int, TaskRecord]]], Filled],
) -> Filled:
    """Cells with how sure the router was: those of the last row are scored again where they do not keep it.

    Args:
        subject: What routes.
        tasks: The tasks in order.
        filled: Its cells.
        again: Scores cells anew.

    Raises:
        ConfigError: The router gives no probabilities.
    """
    last = tasks[-1].position
    lacking = {one.task for one in filled.records if one.stage == last and calibration.KEY not in one.detail}
    if not lacking:
        return filled
    anew = again([(last, task) for task in tasks if task.name in lacking])
    new = {one.task: one for one in anew.records if calibration.KEY in one.detail}
    if len(new) < len(lacking):
        raise no_posterior(
            subject.name, f"the router of {subject.name!r} gives no probabilities of tasks, so it sets none aside"
        )
    records = tuple(new.get(one.task, one) if one.stage == last else one for one in filled.records)
    return Filled(records, filled.computed + len(new), filled.cached - len(new))


def audit_routing(
    subject: Subject, snapshot: Snapshot, rows: Callable[[str], Rows], observer: Observer
) -> RoutingAudit:
    """What a router confuses at the last stage, and what it goes by.

    Args:
        subject: What routes.
        snapshot: The bank.
        rows: Reads the evaluation rows of a task.
        observer: Gets the progress.
    """
    tasks = snapshot.tasks
    names = _names(snapshot)
    present = {task.born: task.name for task in tasks}
    last = tasks[-1].position

    def route(texts: Sequence[str]) -> tuple[list[str], list[float]]:
        if not texts:
            return [], []
        routed, confidence = subject.routes(last, texts)
        return [present[name] for name in routed], [] if confidence is None else confidence.tolist()

    found = []
    observer.start(f"auditing the router of {subject.name}", len(tasks))
    try:
        for done, task in enumerate(tasks, start=1):
            texts = rows(task.name).keys
            routed, confidence = route(texts)
            stripped = strip(texts, names)
            changed = [row for row, text in enumerate(texts) if text != stripped.texts[row]]
            again, _ = route([stripped.texts[row] for row in changed])
            rerouted = list(routed)
            for row, name in zip(changed, again, strict=True):
                rerouted[row] = name
            found.append(Routes(task.name, texts, routed, confidence, stripped, rerouted))
            observer.advance(done, {})
    finally:
        observer.finish()
    return audit_of(found)


def _names(snapshot: Snapshot) -> list[str]:
    """The names of tasks and their data, the longest first: a name may hold another."""
    sources: dict[str, list[str]] = {task.name: [] for task in snapshot.tasks}
    for data in snapshot.datasets:
        if data.task in sources:
            sources[data.task].append(data.source)
    names = dict.fromkeys(name for task, own in sources.items() for name in names_of(task, own))
    return sorted(names, key=len, reverse=True)
