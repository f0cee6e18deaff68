"""``predict``: labels for new texts, with the adapters that answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Composer, Member, state_weights
from lorabank.compose.prototype import build_router, default_parameters
from lorabank.core.config import PredictConfig, validate
from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.core.observer import Observer
from lorabank.data.loading import read_rows
from lorabank.models.runtime import Plan, Runtime
from lorabank.training.strategies import deployed_state
from lorabank.workflows.results import Prediction
from lorabank.workflows.subjects import all_members
from lorabank.workflows.view import adapters_in_order, load_composer, load_runtime


def predict(bank: Bank, config: PredictConfig, observer: Observer) -> tuple[Prediction, ...]:
    """One prediction per text, in order.

    Without a composition the state as trained answers, and the task must be named. A composition that does not route
    needs a task too, or the gaussian router picks the head.
    """
    checked = validate(PredictConfig, asdict(config))
    texts = list(checked.texts)
    if checked.data:
        texts += read_rows(checked.data, text_column=checked.text_column, label_column=None).texts
    if not texts:
        raise ConfigError("there is no text to label", hint='lorabank predict --text "..." or --data FILE')
    snapshot = bank.snapshot()
    if not snapshot.tasks:
        raise NotFoundError("the bank has no task", hint="lorabank add-task NAME --data FILE")
    if checked.task:
        snapshot.task(checked.task)
    name = checked.composition or (None if checked.task else _default(snapshot))
    runtime = load_runtime(bank, snapshot, device=checked.device, dtype="auto", batch_size=checked.batch_size)
    members = all_members(bank, snapshot)
    last = snapshot.tasks[-1].position
    if name is None:
        assert checked.task is not None
        return _as_trained(snapshot, members, runtime, texts, checked.task)
    composer, own = load_composer(bank, snapshot, snapshot.composition(name), lambda: runtime)
    plan = composer.plan(last, texts)
    if checked.task:
        chosen = [member for member in members if member.task == checked.task] * len(texts)
    elif plan.route is not None:
        chosen = [own[k] for k in plan.route]
    else:
        route = build_router(own, default_parameters("gaussian")).route(runtime.features(texts))
        chosen = [own[k] for k in route]
    return _predictions(runtime, texts, plan, chosen, members, composer, given=checked.task is not None)


def _as_trained(
    snapshot: Snapshot, members: Sequence[Member], runtime: Runtime, texts: Sequence[str], task: str
) -> tuple[Prediction, ...]:
    state = deployed_state(adapters_in_order(snapshot), snapshot.adapter_of(task))
    plan = Plan(weights=state_weights(runtime.stack.names, dict.fromkeys(state, 1.0)))
    chosen = [member for member in members if member.task == task] * len(texts)
    return _predictions(runtime, texts, plan, chosen, members, None, given=True)


def _default(snapshot: Snapshot) -> str:
    """The newest composition that routes, or the only one there is."""
    routed = [composition for composition in snapshot.compositions if composition.mode == "prototype"]
    chosen = routed[-1:] or (list(snapshot.compositions) if len(snapshot.compositions) == 1 else [])
    if not chosen:
        raise ConfigError(
            "nobody says which task or composition answers",
            hint=f"--task {snapshot.tasks[-1].name}, or lorabank compose --mode prototype",
            unchanged="nothing was changed",
        )
    return chosen[0].name


def _predictions(
    runtime: Runtime,
    texts: Sequence[str],
    plan: Plan,
    chosen: Sequence[Member],
    members: Sequence[Member],
    composer: Composer | None,
    *,
    given: bool,
) -> tuple[Prediction, ...]:
    answers = runtime.answer(texts, plan, np.array([member.head for member in chosen], np.int64))
    return tuple(
        Prediction(
            text=text,
            label=member.labels[int(answers.labels[i])],
            probability=float(answers.probabilities[i]),
            task=member.task,
            task_id="given" if given else "routed",
            adapters=_answered(plan, i, runtime, members),
        )
        for i, (text, member) in enumerate(zip(texts, chosen, strict=True))
    )


def _answered(plan: Plan, row: int, runtime: Runtime, members: Sequence[Member]) -> dict[str, float]:
    """Task name to the weight of its adapter; for an attention 1 for each adapter that competed."""
    tasks = {member.adapter: member.task for member in members}
    if plan.weights is not None:
        weights = plan.weights if plan.weights.ndim == 1 else plan.weights[row]
        pairs = zip(runtime.stack.names, weights.tolist(), strict=True)
        return {tasks.get(digest, digest[:12]): weight for digest, weight in pairs if weight}
    return {tasks.get(digest, digest[:12]): 1.0 for digest in plan.members} or {member.task: 1.0 for member in members}
