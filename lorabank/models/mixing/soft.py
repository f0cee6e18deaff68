"""Answers of routed texts: in the state of one task each, or the marginal over the tasks that a text may belong to.

With the router's posterior p(t|x), and p(y|x, t) what task t answers in its own state with its own head,

    p(y|x) = sum_t p(t|x) p(y|x, t)

over the *texts* of the labels, so that tasks with equal labels add up (law of total probability; a mixture of experts
whose gate is the router). Only the tasks that matter are asked: see `task_shares`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lorabank.core.shelves import SCORINGS
from lorabank.core.task_kinds import HEAD
from lorabank.models.answering.base import AnswerForm, Answers
from lorabank.models.mixing.runtime import Plan, Runtime

SURE = 0.95
"""A text whose task is at least so likely is answered by that task alone."""

LEAST = 0.01
"""Tasks that are less likely are left out."""

_MASS = 0.99
"""The likeliest tasks that come to so much are asked, and no others."""


def task_shares(
    posterior: NDArray[np.float64], route: NDArray[np.int64], labelled: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """How much each task counts in the answer to each text, ``[n, K]``; each row adds up to 1.

    A text counts for its routed task alone where that is at least `SURE`, or answers in free text, which has no
    labels to add up. Else the likeliest tasks with labels count, as they are likely: until they come to 99 %, and none
    below 1 %.

    Args:
        posterior: ``[n, K]``.
        route: The likeliest task of each text, ``[n]``.
        labelled: Which tasks answer with labels, ``[K]``.
    """
    order = np.argsort(-posterior, axis=1, kind="stable")
    ranked = np.take_along_axis(posterior, order, axis=1)
    asked = (ranked >= LEAST) & (np.cumsum(ranked, axis=1) - ranked < _MASS)
    shares = np.zeros_like(posterior)
    np.put_along_axis(shares, order, np.where(asked, ranked, 0.0), axis=1)
    shares *= labelled
    rows = np.arange(len(route))
    alone = (posterior[rows, route] >= SURE) | ~labelled[route]
    shares[alone] = 0.0
    shares[rows[alone], route[alone]] = 1.0
    return np.asarray(shares / shares.sum(1, keepdims=True))


def shares_of(plan: Plan, heads: NDArray[np.int64], forms: Sequence[AnswerForm]) -> NDArray[np.float64]:
    """`task_shares` of a soft plan.

    Args:
        plan: With its route, posterior and own states.
        heads: Of each member the index of its form, ``[K]``.
        forms: The forms.
    """
    assert plan.route is not None
    assert plan.posterior is not None
    with_labels = np.array([labelled(forms[head]) for head in heads.tolist()], np.bool_)
    return task_shares(plan.posterior, plan.route, with_labels)


def labelled(form: AnswerForm) -> bool:
    """Whether a task answers with one of its labels."""
    return form.scoring == HEAD or bool(SCORINGS.load(form.scoring).labelled)


def answer_routed(
    runtime: Runtime,
    texts: Sequence[str],
    plan: Plan,
    heads: NDArray[np.int64],
    read: Callable[[int, int], str] | None = None,
) -> Answers:
    """Answer texts that were routed.

    Args:
        runtime: The model.
        texts: n texts.
        plan: Its route chooses the head of each text; with ``own_states`` the answers are soft.
        heads: Of each member the index of its head and form, ``[K]``.
        read: Gives what member k reads of text i; where there is none, the text.

    Returns:
        The likeliest label of each text and its probability p(y|x).
    """
    assert plan.route is not None

    def asked_of(rows: NDArray[np.int64], members: NDArray[np.int64]) -> list[str]:
        pairs = zip(rows.tolist(), members.tolist(), strict=True)
        return [read(i, k) if read else texts[i] for i, k in pairs]

    if plan.own_states is None:
        return runtime.answer(asked_of(np.arange(len(texts)), plan.route), plan, heads[plan.route])
    assert plan.weights is not None
    shares = shares_of(plan, heads, runtime.answerer.forms)
    several = (shares > 0).sum(1) > 1
    said, probabilities = [""] * len(texts), np.zeros(len(texts), np.float32)
    rows, (asked, tasks) = np.flatnonzero(~several), np.nonzero(shares * several[:, None])
    prompts, soft = asked_of(rows, plan.route[rows]), asked_of(asked, tasks)  # what cannot be read is refused at once
    if rows.size:
        alone = runtime.answer(prompts, Plan(weights=plan.weights[rows]), heads[plan.route[rows]])
        probabilities[rows] = alone.probabilities
        for i, answer in zip(rows.tolist(), alone.said, strict=True):
            said[i] = answer
    if asked.size:
        found = runtime.label_shares(soft, Plan(weights=plan.own_states[tasks]), heads[tasks])
        labels = [runtime.answerer.forms[head].labels for head in heads[tasks].tolist()]
        for pairs in np.split(np.arange(len(asked)), np.flatnonzero(np.diff(asked)) + 1):
            i = int(asked[pairs[0]])
            totals = label_totals([(shares[i, tasks[k]], labels[k], found[k]) for k in pairs])
            said[i] = likeliest(totals)
            probabilities[i] = totals[said[i]]
    return Answers(tuple(said), probabilities)


def label_totals(parts: Sequence[tuple[float, Sequence[str], NDArray[np.float64]]]) -> dict[str, float]:
    """The probability of each label over some tasks: of one task in the order of its labels, else in the alphabet's.

    Args:
        parts: Of each task its share, its labels and their probabilities, float64 ``[labels]``.
    """
    terms: dict[str, list[float]] = {}
    for share, labels, probabilities in parts:
        for label, probability in zip(labels, probabilities.tolist(), strict=True):
            terms.setdefault(label, []).append(share * probability)
    order = terms if len(parts) == 1 else sorted(terms)
    return {label: math.fsum(terms[label]) for label in order}  # exact: the order of tasks changes nothing


def likeliest(totals: Mapping[str, float]) -> str:
    """The likeliest label; the first where two are equal."""
    return max(totals, key=totals.__getitem__)
