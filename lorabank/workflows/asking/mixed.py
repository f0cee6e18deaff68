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

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import LorabankError
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.finite import explained
from lorabank.models.mixing.runtime import Plan
from lorabank.models.mixing.soft import label_totals, likeliest
from lorabank.models.tasks.batches import evaluating
from lorabank.workflows.asking.planned import Asked, Begun, Planning, weights_of
from lorabank.workflows.asking.questions import Answered, Question, Who
from lorabank.workflows.asking.responders import Part
from lorabank.workflows.asking.running import RunningBatch, runs
from lorabank.workflows.asking.writing import write
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank

Deliver = Callable[[int, Answered | LorabankError], None]
"""Called once with each question's number and its answer, or why it has none; labels come before free text."""


More = Callable[[int], Sequence[Question]]
"""Called after every token with how many questions have room beside those that are answered in free text; gives those
that shall be answered too, whose numbers follow those of the others."""


class MixedAnswers:
    """What answers in one state of a bank.

    Args:
        opened: The bank, whose state has a task at least.
        settings: How the model answers.
        notice: Gets what the user should know of that.
    """

    def __init__(self, opened: OpenBank, settings: RuntimeSettings, notice: Callable[[str], None]) -> None:
        self._planning = Planning(opened, settings, notice)
        self._runtime = self._planning.runtime
        self._batch_size = settings.batch_size

    @property
    def max_length(self) -> int | None:
        """Tokens that the base model takes; None for any number."""
        return self._planning.max_length

    def route(self, questions: Sequence[Question], deliver: Callable[[int, Who | LorabankError], None]) -> None:
        """Find what would answer; see `Planning.route`."""
        self._planning.route(questions, deliver)

    def answer(self, questions: Sequence[Question], begun: Begun, deliver: Deliver, more: More | None = None) -> None:
        """Answer questions; one that cannot be answered spoils no other, unless what the model computes is broken.

        Args:
            questions: Those that are there.
            begun: Called with each of them.
            deliver: Called with each of them.
            more: Gives others that came meanwhile. They join the free text that is being written in sums of adapters,
                where the model keeps the rows of a batch apart (`lorabank.models.answering.rolling`).

        Raises:
            LorabankError: A pass over several questions failed.
        """
        whose: dict[int, Who] = {}
        asked: list[Question] = []

        def begin(i: int, who: Who) -> bool:
            whose[i] = who
            return begun(i, who)

        def free(new: Sequence[Question]) -> list[Asked]:
            """Answer new questions whose task has labels, and give the others."""
            first = len(asked)
            asked.extend(new)
            parts = self._planning.parts(new, first, begin, deliver)
            labelled, others = self._planning.sorted_by_answer(parts)
            self._label(labelled, asked, whose, deliver)
            return self._planning.askable(others, asked, deliver)

        def request(one: Asked) -> GenerationRequest:
            i = one.part.text
            return replace(asked[i].generation, done=partial(_deliver_written, deliver, i, whose[i]))

        try:
            waiting = free(questions)
            if more is not None:
                waiting = self._run(waiting, lambda room: free(more(room)), request, deliver)
            self._write(waiting, request)
        finally:
            self._runtime.forget_features()

    def _label(
        self, parts: Sequence[Part], questions: Sequence[Question], whose: dict[int, Who], deliver: Deliver
    ) -> None:
        """Labels: the likeliest over the tasks that a text may belong to, each by its share (`soft`)."""
        terms: dict[int, list[tuple[float, Sequence[str], NDArray[np.float64]]]] = {}
        for plan, group in _together(self._planning.askable(parts, questions, deliver)):
            heads = np.array([asked.part.member.head for asked in group], np.int64)
            found = self._runtime.label_shares([asked.text for asked in group], plan, heads)
            for asked, shares in zip(group, found, strict=True):
                terms.setdefault(asked.part.text, []).append((asked.part.share, asked.form.labels, shares))
        for i, own in terms.items():
            totals = label_totals(own)
            deliver(i, Answered(whose[i], likeliest(totals), totals))

    def _run(
        self,
        waiting: Sequence[Asked],
        arrive: Callable[[int], Sequence[Asked]],
        request: Callable[[Asked], GenerationRequest],
        deliver: Deliver,
    ) -> list[Asked]:
        """Write free text in a batch that others join; gives what cannot join, for which the batch runs out."""
        joining = [one for one in waiting if self._joins(one)]
        left = [one for one in waiting if not self._joins(one)]
        if not joining:
            return left
        model, batch = self._runtime.base.model, RunningBatch(self._runtime)
        with evaluating(model), explained(model):
            while joining or len(batch):
                if joining:
                    self._join(batch, joining, request, deliver)
                    self._runtime.forget_features()
                if len(batch):
                    batch.step()
                room = self._batch_size - len(batch)
                arrived = arrive(room) if room and not left else []
                joining = [one for one in arrived if self._joins(one)]
                left += [one for one in arrived if not self._joins(one)]
        return left

    def _join(
        self,
        batch: RunningBatch,
        joining: Sequence[Asked],
        request: Callable[[Asked], GenerationRequest],
        deliver: Deliver,
    ) -> None:
        prompts, taken = [], []
        for one in joining:
            try:
                prompts.append(batch.prompt(one.text, one.form, request(one)))
                taken.append(one)
            except LorabankError as error:
                deliver(one.part.text, error)
        if taken:
            batch.join(prompts, [request(one) for one in taken], [weights_of(one.part) for one in taken])

    def _joins(self, one: Asked) -> bool:
        return one.part.plan.weights is not None and runs(self._runtime, weights_of(one.part))

    def _write(self, waiting: Sequence[Asked], request: Callable[[Asked], GenerationRequest]) -> None:
        """Free text; each answer is delivered when it has ended, also where others of its batch have not."""
        for plan, group in _together(waiting):
            forms = [one.form for one in group]
            write(self._runtime, [one.text for one in group], plan, forms, [request(one) for one in group])


def _deliver_written(deliver: Deliver, i: int, who: Who, written: Written) -> None:
    deliver(i, Answered(who, written.text, written=written))


def _together(every: Sequence[Asked]) -> list[tuple[Plan, list[Asked]]]:
    """Parts that one plan answers: all sums in one, with a row of weights for each, and every other plan by itself."""
    sums = [asked for asked in every if asked.part.plan.weights is not None]
    groups = [(Plan(weights=np.stack([weights_of(asked.part) for asked in sums])), sums)] if sums else []
    apart: dict[int, list[Asked]] = {}
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
