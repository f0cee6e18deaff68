"""Answers to questions of several tasks and compositions, in as few passes of the model as they allow.

The state of a text is a row of weights over the bank's adapters, whatever task or composition it was asked of:

    y_i = W x_i + sum_k w_ik s_k B_k A_k x_i

so questions to different tasks, and texts that a composition routes, are rows of one batch. What is not a sum (a gate,
a compressed adapter, a dense merge) is answered in a pass of its own. Nothing is ever merged for one question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import LorabankError
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.replies import Written
from lorabank.models.mixing.runtime import Plan
from lorabank.models.mixing.soft import label_totals, labelled, likeliest
from lorabank.workflows.asking.questions import Answered, Prompts, Question, Who
from lorabank.workflows.asking.responders import Part, Responder, responder_of
from lorabank.workflows.asking.writing import write
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.scored import all_members

Begun = Callable[[int, Who], bool]
"""Called with a question's number and what answers it, before it does; gives whether the answer is wanted."""

Deliver = Callable[[int, Answered | LorabankError], None]
"""Called once with each question's number and its answer, or why it has none; labels come before free text."""


class MixedAnswers:
    """What answers in one state of a bank.

    Args:
        opened: The bank, whose state has a task at least.
        settings: How the model answers.
        notice: Gets what the user should know of that.
    """

    def __init__(self, opened: OpenBank, settings: RuntimeSettings, notice: Callable[[str], None]) -> None:
        self._opened, self._snapshot, self._revision = opened, opened.snapshot, opened.revision
        self._runtime = opened.runtime(settings, notice)
        self._every = all_members(opened.bank, self._snapshot)
        self._prompts = Prompts(opened.base, self._snapshot, self.max_length)
        self._responders: dict[str, Responder] = {}

    @property
    def max_length(self) -> int | None:
        """Tokens that the base model takes; None for any number."""
        return self._runtime.base.max_length

    def route(self, questions: Sequence[Question], deliver: Callable[[int, Who | LorabankError], None]) -> None:
        """Find what would answer; a router reads features of the texts, and no answer is computed."""

        def begin(i: int, who: Who) -> bool:
            deliver(i, who)
            return False

        try:
            self._planned(questions, begin, deliver)
        finally:
            self._runtime.forget_features()

    def answer(self, questions: Sequence[Question], begun: Begun, deliver: Deliver) -> None:
        """Answer questions; one that cannot be answered spoils no other, unless what the model computes is broken.

        Raises:
            LorabankError: A pass over several questions failed.
        """
        whose: dict[int, Who] = {}

        def begin(i: int, who: Who) -> bool:
            whose[i] = who
            return begun(i, who)

        try:
            parts = self._planned(questions, begin, deliver)
            self._label([part for part in parts if self._has_labels(part)], questions, whose, deliver)
            self._write([part for part in parts if not self._has_labels(part)], questions, whose, deliver)
        finally:
            self._runtime.forget_features()

    def _has_labels(self, part: Part) -> bool:
        return labelled(self._form(part))

    def _form(self, part: Part) -> AnswerForm:
        return self._runtime.answerer.forms[part.member.head]

    def _planned(
        self, questions: Sequence[Question], begun: Begun, refuse: Callable[[int, LorabankError], None]
    ) -> list[Part]:
        """The states in which wanted answers are computed; ``text`` of each part is the question's number."""
        by_model: dict[str, list[int]] = {}
        for i, question in enumerate(questions):
            by_model.setdefault(question.model, []).append(i)
        found = []
        for model, numbers in by_model.items():
            texts: dict[int, str] = {}
            try:
                responder = self._responder(model)
                for i in numbers:
                    try:
                        texts[i] = self._prompts.routed(questions[i], responder.tasks)
                    except LorabankError as error:
                        refuse(i, error)
                whose, parts = responder.parts(list(texts.values()), self._runtime, self._every) if texts else ([], [])
            except LorabankError as error:
                for i in texts or numbers:
                    refuse(i, error)
                continue
            order = list(texts)
            told = zip(order, (replace(who, revision=self._revision) for who in whose), strict=True)
            wanted = {i for i, who in told if begun(i, who)}
            found += [replace(part, text=order[part.text]) for part in parts if order[part.text] in wanted]
        return found

    def _responder(self, model: str) -> Responder:
        if model not in self._responders:
            bank, snapshot = self._opened.bank, self._snapshot
            self._responders[model] = responder_of(model, bank, snapshot, self._runtime, self._every)
        return self._responders[model]

    def _label(
        self, parts: Sequence[Part], questions: Sequence[Question], whose: dict[int, Who], deliver: Deliver
    ) -> None:
        """Labels: the likeliest over the tasks that a text may belong to, each by its share (`soft`)."""
        terms: dict[int, list[tuple[float, Sequence[str], NDArray[np.float64]]]] = {}
        for plan, group in _together(self._askable(parts, questions, deliver)):
            heads = np.array([asked.part.member.head for asked in group], np.int64)
            found = self._runtime.label_shares([asked.text for asked in group], plan, heads)
            for asked, shares in zip(group, found, strict=True):
                terms.setdefault(asked.part.text, []).append((asked.part.share, asked.form.labels, shares))
        for i, own in terms.items():
            totals = label_totals(own)
            deliver(i, Answered(whose[i], likeliest(totals), totals))

    def _askable(self, parts: Sequence[Part], questions: Sequence[Question], deliver: Deliver) -> list[_Asked]:
        """The parts whose task takes the question."""
        found, refused = [], set()
        for part in parts:
            try:
                asked = self._prompts.prompt(questions[part.text], part.member.task, self._form(part))
                found.append(_Asked(part, *asked))
            except LorabankError as error:
                if part.text not in refused:
                    deliver(part.text, error)
                refused.add(part.text)
        return [asked for asked in found if asked.part.text not in refused]

    def _write(
        self, parts: Sequence[Part], questions: Sequence[Question], whose: dict[int, Who], deliver: Deliver
    ) -> None:
        """Free text; each answer is delivered when it has ended, also where others of its batch have not."""
        for plan, group in _together(self._askable(parts, questions, deliver)):
            requests = []
            for asked in group:
                i = asked.part.text
                requests.append(replace(questions[i].generation, done=partial(_deliver_written, deliver, i, whose[i])))
            write(self._runtime, [asked.text for asked in group], plan, [asked.form for asked in group], requests)


class _Asked(NamedTuple):
    """A part with the text that is asked, and the form that is put around it."""

    part: Part
    text: str
    form: AnswerForm


def _deliver_written(deliver: Deliver, i: int, who: Who, written: Written) -> None:
    deliver(i, Answered(who, written.text, written=written))


def _together(every: Sequence[_Asked]) -> list[tuple[Plan, list[_Asked]]]:
    """Parts that one plan answers: all sums in one, with a row of weights for each, and every other plan by itself."""
    sums = [asked for asked in every if asked.part.plan.weights is not None]
    groups = [(Plan(weights=np.stack([_weights(asked.part) for asked in sums])), sums)] if sums else []
    apart: dict[int, list[_Asked]] = {}
    for asked in every:
        if asked.part.plan.weights is None:
            apart.setdefault(id(asked.part.plan), []).append(asked)
    for group in apart.values():
        plan = group[0].part.plan
        if plan.texts is not None:
            own = [asked.part.row for asked in group]
            plan = replace(plan, texts={module: weights.take(own) for module, weights in plan.texts.items()})
        groups.append((plan, group))
    return groups


def _weights(part: Part) -> NDArray[np.float32]:
    """The weights ``[K]`` of the part's text over the bank's adapters."""
    weights = part.plan.weights
    assert weights is not None
    return weights if weights.ndim == 1 else weights[part.row]
