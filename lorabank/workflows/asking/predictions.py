"""From a plan to what ``predict`` and ``generate`` return: answers, with tasks and the adapters that gave them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.base import Member
from lorabank.compose.routed import no_posterior
from lorabank.core.states import State
from lorabank.models.answering.base import Answers
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.mixing.soft import LEAST, answer_routed, shares_of
from lorabank.workflows.asking.questions import UserTexts
from lorabank.workflows.results import Prediction, RoutedPrediction

Say = Callable[[Sequence[str], Plan, NDArray[np.int64]], Answers]
"""Answers n texts in the states of a plan, each by the head or form of its number: what `Runtime.answer` does."""


def given_task(
    runtime: Runtime,
    texts: UserTexts,
    plan: Plan,
    chosen: Member,
    members: Sequence[Member],
    *,
    state: State | Literal["composition"] = "composition",
    composition: str | None = None,
    say: Say | None = None,
) -> tuple[Prediction, ...]:
    """Answers of one task's head.

    Args:
        runtime: The model.
        texts: n texts, of which each task reads what it learnt to read.
        plan: The state that answers.
        chosen: The task.
        members: Every task of the bank; their names are those of the adapters in `Prediction`.
        state: What the state is called.
        composition: The composition that answers, if one does.
        say: What answers in the place of the runtime: by default each text gets a label, where its task has labels.
    """
    prompts = [texts.read_by(chosen, i) for i in range(len(texts))]
    answers = (say or runtime.answer)(prompts, plan, np.full(len(texts), chosen.head, np.int64))
    adapters = adapters_of(plan, len(texts), runtime, members)
    return tuple(
        Prediction(text, *_said(answers, i), chosen.task, "given", adapters[i], state, composition)
        for i, text in enumerate(texts.given)
    )


def found_tasks(
    runtime: Runtime,
    texts: UserTexts,
    plan: Plan,
    own: Sequence[Member],
    members: Sequence[Member],
    *,
    composition: str | None,
    abstain: float | None,
    say: Say | None = None,
) -> tuple[Prediction, ...]:
    """Answers to texts whose task a router found.

    Args:
        runtime: As of `given_task`.
        texts: As of `given_task`.
        plan: The state that answers, with its route.
        own: The members that it routes to.
        members: As of `given_task`.
        composition: As of `given_task`.
        abstain: How likely a task must be to answer; None to answer every text.
        say: As of `given_task`; where it is given, each text is answered by its likeliest task alone.

    Raises:
        ConfigError: Texts are to be set aside, and the router gives no probabilities.
    """
    assert plan.route is not None
    if abstain is not None and plan.posterior is None:
        assert composition is not None
        raise no_posterior(
            composition, f"the router of {composition!r} gives no probabilities of tasks, so it sets none aside"
        )
    heads, route = np.array([member.head for member in own], np.int64), plan.route.tolist()
    if say is not None:
        plan = replace(plan, own_states=None)

    def read(i: int, k: int) -> str:
        return texts.read_by(own[k], i)

    if say is None:
        answers = answer_routed(runtime, texts.given, plan, heads, read)
    else:
        answers = say([read(i, k) for i, k in enumerate(route)], plan, heads[plan.route])
    if plan.own_states is not None:
        shares = shares_of(plan, heads, runtime.answerer.forms)
        plan = replace(plan, weights=(shares @ plan.own_states).astype(np.float32))
    adapters = adapters_of(plan, len(texts), runtime, members)
    found: list[Prediction] = []
    for i, (text, k) in enumerate(zip(texts.given, route, strict=True)):
        one = Prediction(text, *_said(answers, i), own[k].task, "routed", adapters[i], "composition", composition)
        found.append(one if plan.margin is None else _routed(one, float(plan.margin[i]), likely_tasks(plan, i, own)))
    if abstain is None or plan.posterior is None:
        return tuple(found)
    sure = (plan.posterior.max(1) >= abstain).tolist()
    return tuple(one if likely else _set_aside(one) for one, likely in zip(found, sure, strict=True))


def _said(answers: Answers, i: int) -> tuple[str, float | None]:
    probability = float(answers.probabilities[i])
    return answers.said[i], None if math.isnan(probability) else probability


def _routed(one: Prediction, margin: float, posterior: Mapping[str, float]) -> RoutedPrediction:
    return RoutedPrediction(**vars(one), margin=margin if math.isfinite(margin) else None, posterior=dict(posterior))


def likely_tasks(plan: Plan, i: int, own: Sequence[Member]) -> dict[str, float]:
    """The tasks of a text that are not very unlikely, the likeliest first."""
    if plan.posterior is None:
        return {}
    row: NDArray[np.float64] = plan.posterior[i]
    order = np.argsort(-row, kind="stable")
    return {own[k].task: float(row[k]) for k in order.tolist() if row[k] >= LEAST}


def _set_aside(one: Prediction) -> Prediction:
    """The same without an answer."""
    return replace(one, label=None, probability=None, task=None, adapters={})


def adapters_of(plan: Plan, texts: int, runtime: Runtime, members: Sequence[Member]) -> list[dict[str, float]]:
    """Of each text, task name to the weight of its adapter: a mean over the modules where a gate weighs whole texts.

    A gate that weighs tokens has 1 for each adapter that competed.
    """
    tasks = {member.adapter: member.task for member in members}
    if plan.weights is None:
        digests = dict.fromkeys(digest for state in plan.states for digest in state)
        competed = [tasks.get(digest, digest[:12]) for digest in digests] or [member.task for member in members]
        if plan.texts is None:
            return [dict.fromkeys(competed, 1.0) for _ in range(texts)]
        first, *others = [weights.adapters for weights in plan.texts.values()]
        mean = sum(others, first) / len(plan.texts)
        return [dict(zip(competed, row, strict=True)) for row in mean.tolist()]
    names = [tasks.get(digest, digest[:12]) for digest in runtime.stack.names]
    rows = np.broadcast_to(plan.weights, (texts, len(names)))
    return [{names[k]: float(row[k]) for k in np.flatnonzero(row)} for row in rows]
