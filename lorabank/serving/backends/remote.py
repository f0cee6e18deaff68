"""Answers of a language model's tasks whose tokens another program makes: routes, prompts and texts are made here."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.core.errors import LorabankError
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.generating import end_tokens
from lorabank.models.answering.replies import GenerationRequest, Reply, Written
from lorabank.models.answering.scorings.base import Scoring
from lorabank.models.answering.text_answers import TextAnswerer, scoring_of
from lorabank.models.mixing.soft import label_totals, likeliest
from lorabank.models.tasks.batches import Enter
from lorabank.serving.backends.base import Deliver
from lorabank.serving.backends.failures import not_taken
from lorabank.workflows.asking.mixed import More
from lorabank.workflows.asking.planned import Asked, Begun, Planning, weights_of
from lorabank.workflows.asking.questions import Answered, Question, Who
from lorabank.workflows.asking.responders import Part
from lorabank.workflows.carrying.adapter_folders import NotServedError, Weights

_GO = "GET /v1/models says what is servable"


class Tokens(Protocol):
    """Makes tokens, with a sum of the bank's adapters."""

    def prepare(self, weights: Weights) -> str:
        """Make a sum ready, until it is released; gives its name."""
        ...

    def release(self, adapter: str) -> None:
        """Let a sum go that was prepared."""
        ...

    async def write(
        self, adapter: str, prompt: Sequence[int], request: GenerationRequest, ends: Sequence[int], reply: Reply
    ) -> None:
        """Generate an answer behind a prompt, until one of ``ends``; ``reply`` takes its tokens, and ends."""
        ...

    async def log_likelihoods(
        self, adapter: str, prompt: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        """Sums of log p of the tokens of each answer behind a prompt."""
        ...


@dataclass(frozen=True)
class Work:
    """What is left to do for one question.

    Attributes:
        do: Delivers its answer, or raises why there is none.
        fail: Delivers why there is none.
        over: Whether nobody waits for it any longer, or it has taken too long.
        end: Lets go what it needs.
        reply: What was generated; None for an answer with a label.
    """

    do: Callable[[], Coroutine[Any, Any, None]]
    fail: Callable[[Exception], None]
    over: Callable[[], bool]
    end: Callable[[], None]
    reply: Reply | None = None


_Do = Callable[[], Coroutine[Any, Any, None]]
_Ready = tuple[Asked, str]
"""What is asked, and the adapter with which it is answered."""
_Make = Callable[[Question, Sequence[_Ready], Who, Callable[[Answered], None]], tuple[_Do, Reply | None]]
"""Gives what answers a question, and what its free text grows in."""


class RemoteAnswers:
    """What answers in one state of a bank.

    Args:
        planning: Finds what answers.
        tokens: Makes the tokens.
        start: Gets the work of some questions, and sees to it in another thread.
        refused: Called with the name of a task or composition that is found not to be a sum of adapters.
    """

    def __init__(
        self,
        planning: Planning,
        tokens: Tokens,
        start: Callable[[Sequence[Work]], None],
        refused: Callable[[str], None],
    ) -> None:
        self._planning, self._tokens, self._start, self._refused = planning, tokens, start, refused
        runtime = planning.runtime
        assert isinstance(runtime.answerer, TextAnswerer)
        self._answerer = runtime.answerer
        self._tokenizer = deepcopy(runtime.base.tokenizer)  # the other thread decodes while this one encodes
        self._ends = end_tokens(runtime.base.model, runtime.base.tokenizer)

    @property
    def max_length(self) -> int | None:
        """Tokens that the base model takes; None for any number."""
        return self._planning.max_length

    def route(self, questions: Sequence[Question], deliver: Callable[[int, Who | LorabankError], None]) -> None:
        """Find what would answer each question."""
        self._planning.route(questions, deliver)

    def answer(self, questions: Sequence[Question], begun: Begun, deliver: Deliver, more: More | None = None) -> None:
        """Find what answers questions, and let them be answered; see `Answers`."""
        whose: dict[int, Who] = {}

        def begin(i: int, who: Who) -> bool:
            whose[i] = who
            return begun(i, who)

        try:
            parts = self._planning.parts(questions, 0, begin, deliver)
            labelled, others = self._planning.sorted_by_answer(parts)
            free = {one.part.text: [one] for one in self._planning.askable(others, questions, deliver)}
            labels: dict[int, list[Asked]] = {}
            for one in self._planning.askable(labelled, questions, deliver):
                labels.setdefault(one.part.text, []).append(one)
        finally:
            self._planning.runtime.forget_features()
        works = [self._made(questions[i], own, whose[i], deliver, self._writing) for i, own in free.items()]
        works += [self._made(questions[i], own, whose[i], deliver, self._labelling) for i, own in labels.items()]
        self._start([work for work in works if work is not None])

    def _made(
        self, question: Question, asked: Sequence[Asked], who: Who, deliver: Deliver, make: _Make
    ) -> Work | None:
        """The work of a question; None where it cannot be asked, which is delivered."""
        i, over = asked[0].part.text, question.generation.over or _not_over
        adapters: list[str] = []

        def end() -> None:
            for adapter in adapters:
                self._tokens.release(adapter)

        try:
            for one in asked:
                adapters.append(self._prepared(question.model, one.part))
            do, reply = make(question, list(zip(asked, adapters, strict=True)), who, partial(deliver, i))
        except Exception as error:
            end()
            deliver(i, error)
            return None
        return Work(do, partial(deliver, i), over, end, reply)

    def _writing(
        self, question: Question, asked: Sequence[_Ready], who: Who, done: Callable[[Answered], None]
    ) -> tuple[_Do, Reply]:
        """Free text."""
        ((one, adapter),) = asked

        def written(found: Written) -> None:
            done(Answered(who, found.text, written=found))

        request = replace(question.generation, done=written)
        (prompt,) = self._answerer.prompts([one.text], [one.form], [request])
        reply = Reply(self._tokenizer, request, self._ends, len(prompt), strip=True)
        return partial(self._tokens.write, adapter, prompt, request, self._ends, reply), reply

    def _labelling(
        self, question: Question, asked: Sequence[_Ready], who: Who, done: Callable[[Answered], None]
    ) -> tuple[_Do, None]:
        """A label: the likeliest over the tasks that a text may belong to, each by its share."""
        found = [(one.part.share, one.form, self._scored(one, adapter)) for one, adapter in asked]

        async def do() -> None:
            totals = label_totals([(share, form.labels, await scored()) for share, form, scored in found])
            done(Answered(who, likeliest(totals), totals))

        return do, None

    def _scored(self, one: Asked, adapter: str) -> Callable[[], Coroutine[Any, Any, NDArray[np.float64]]]:
        """What gives the shares ``[labels]`` of a text's labels."""
        form, scoring = one.form, scoring_of(one.form)
        labels = [list(ids) for ids in self._answerer.label_tokens(form)]
        (prompt,) = self._answerer.label_prompts(form, [one.text], labels)

        async def scored() -> NDArray[np.float64]:
            return shares_of(scoring, form, one.text, await self._tokens.log_likelihoods(adapter, prompt, labels))

        return scored

    def _prepared(self, model: str, part: Part) -> str:
        """The name of the sum that is a part's state, which is ready.

        Raises:
            BackendFailure: The backend does not take it.
            LorabankError: It cannot be exported.
        """
        weights = self._sum(model, part)
        try:
            return self._tokens.prepare(weights)
        except NotServedError as error:
            self._refuse(model, error.message)

    def _sum(self, model: str, part: Part) -> Weights:
        """The sum of adapters that is a part's state.

        Raises:
            BackendFailure: It is not a sum, or one that depends on the text.
        """
        plan, runtime = part.plan, self._planning.runtime
        if plan.weights is None:
            self._refuse(model, "the backend takes sums of adapters, and this model answers by something else")
        weights = weights_of(part)
        if runtime.alone.among(weights):
            self._refuse(model, "the backend takes LoRA factors, and an adapter of this model has none")
        if plan.weights.ndim == 2 and not np.isin(weights, (0.0, 1.0)).all():
            self._refuse(model, "the backend takes fixed sums of adapters, and this one depends on the text")
        found = {runtime.stack.names[k]: float(weights[k]) for k in np.flatnonzero(weights).tolist()}
        if not found:
            self._refuse(model, "the backend takes sums of adapters, and this model is the bare base")
        return found

    def _refuse(self, model: str, why: str) -> NoReturn:
        self._refused(model)
        raise not_taken(f"{why}; {_GO}")


def shares_of(scoring: Scoring, form: AnswerForm, text: str, likelihoods: Sequence[float]) -> NDArray[np.float64]:
    """What a scoring makes of how likely each label is behind a text, float64 ``[labels]``; they add up to 1."""
    answers = scoring.answer(_Known(likelihoods), form, [text], lambda rows: None, shared=False)
    if answers.shares is not None:
        return np.asarray(answers.shares[0], np.float64)
    return np.array([float(label == answers.said[0]) for label in form.labels])


class _Known:
    """What a scoring asks of a model, of one text whose labels' log-likelihoods are known."""

    def __init__(self, likelihoods: Sequence[float]) -> None:
        self._likelihoods = likelihoods

    def label_tokens(self, form: AnswerForm) -> NoReturn:
        raise _asks_more(form)

    def label_log_likelihoods(
        self, form: AnswerForm, texts: Sequence[str], enter: Enter, *, shared: bool
    ) -> NDArray[np.float64]:
        """Those of the one text, ``[1, labels]``."""
        return np.array([self._likelihoods], np.float64)

    def generated(self, form: AnswerForm, texts: Sequence[str], enter: Enter, *, max_new_tokens: int) -> NoReturn:
        raise _asks_more(form)


def _asks_more(form: AnswerForm) -> Exception:
    return not_taken(f"the scoring {form.scoring!r} asks for more than the likelihoods of labels; {_GO}")


def _not_over() -> bool:
    return False
