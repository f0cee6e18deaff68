"""What is asked for questions: the state in which each is answered, the task that answers, and the text it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import LorabankError
from lorabank.models.answering.base import AnswerForm
from lorabank.models.mixing.soft import labelled
from lorabank.workflows.asking.questions import Prompts, Question, Who
from lorabank.workflows.asking.responders import Part, Responder, responder_of
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.scored import all_members

Begun = Callable[[int, Who], bool]
"""Called with a question's number and what answers it, before it does; gives whether the answer is wanted."""

Refuse = Callable[[int, LorabankError], None]
"""Called with the number of a question that is not answered, and why."""


class Asked(NamedTuple):
    """A part with the text that is asked, and the form that is put around it."""

    part: Part
    text: str
    form: AnswerForm


class Planning:
    """Finds what answers in one state of a bank, and what it is asked; nothing is answered here.

    Args:
        opened: The bank, whose state has a task at least.
        settings: How the model reads what routers need.
        notice: Gets what the user should know of that.

    Attributes:
        runtime: The model.
    """

    def __init__(self, opened: OpenBank, settings: RuntimeSettings, notice: Callable[[str], None]) -> None:
        self._opened, self._snapshot, self._revision = opened, opened.snapshot, opened.revision
        self.runtime = opened.runtime(settings, notice)
        self._every = all_members(opened.bank, self._snapshot)
        self._prompts = Prompts(opened.base, self._snapshot, self.max_length)
        self._responders: dict[str, Responder] = {}

    @property
    def max_length(self) -> int | None:
        """Tokens that the base model takes; None for any number."""
        return self.runtime.base.max_length

    def route(self, questions: Sequence[Question], deliver: Callable[[int, Who | LorabankError], None]) -> None:
        """Find what would answer; a router reads features of the texts, and no answer is computed."""

        def begin(i: int, who: Who) -> bool:
            deliver(i, who)
            return False

        try:
            self.parts(questions, 0, begin, deliver)
        finally:
            self.runtime.forget_features()

    def parts(self, new: Sequence[Question], first: int, begun: Begun, refuse: Refuse) -> list[Part]:
        """The states in which wanted answers are computed; ``text`` of each part is the question's number.

        Args:
            new: Questions.
            first: Number of the first of them.
            begun: Called with each of them.
            refuse: Called with those that cannot be asked.
        """
        questions = dict(enumerate(new, start=first))
        by_model: dict[str, list[int]] = {}
        for i, question in questions.items():
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
                whose, parts = responder.parts(list(texts.values()), self.runtime, self._every) if texts else ([], [])
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
            self._responders[model] = responder_of(model, bank, snapshot, self.runtime, self._every)
        return self._responders[model]

    def form(self, part: Part) -> AnswerForm:
        """How the task of a part is asked."""
        return self.runtime.answerer.forms[part.member.head]

    def sorted_by_answer(self, parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
        """The parts whose task answers with one of its labels, and those whose task answers in free text."""
        with_labels = [part for part in parts if labelled(self.form(part))]
        return with_labels, [part for part in parts if not labelled(self.form(part))]

    def askable(self, parts: Sequence[Part], questions: Sequence[Question], refuse: Refuse) -> list[Asked]:
        """The parts whose task takes the question; those of ``questions`` are numbered as `parts` numbered them."""
        found, refused = [], set()
        for part in parts:
            try:
                asked = self._prompts.prompt(questions[part.text], part.member.task, self.form(part))
                found.append(Asked(part, *asked))
            except LorabankError as error:
                if part.text not in refused:
                    refuse(part.text, error)
                refused.add(part.text)
        return [asked for asked in found if asked.part.text not in refused]


def weights_of(part: Part) -> NDArray[np.float32]:
    """The weights ``[K]`` of the part's text over the bank's adapters."""
    weights = part.plan.weights
    assert weights is not None
    return weights if weights.ndim == 1 else weights[part.row]
