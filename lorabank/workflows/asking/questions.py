"""Questions to tasks and compositions of a bank, what is read of each, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Literal, TypeVar

from jinja2 import TemplateError

from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Member
from lorabank.core.config import SamplingConfig
from lorabank.core.errors import DataError
from lorabank.core.templates import ChatPrompt
from lorabank.data.formats.cells import BadCell, check_characters
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.assemble import holds_conversations
from lorabank.workflows.task_data import ChatTemplate

T = TypeVar("T")

Message = Mapping[str, str]
"""``role`` (system, user or assistant) and ``content``."""


@dataclass(frozen=True)
class Question:
    """One text, or conversation, to a task or composition.

    Attributes:
        model: Name of the task or composition.
        messages: The conversation; of a text alone one message of the user. A router reads the
            user's last one, and a task's prompt template is put around it.
        generation: How free text is generated; an answer with a label does not depend on it.
        raw: Whether the text is the whole prompt of free text, without a template.
        shortened: Called with how many of the messages are read, the last ones and a system prompt, where a task reads
            fewer than there are; None to refuse such a conversation, or to truncate its beginning.
    """

    model: str
    messages: tuple[Message, ...]
    generation: GenerationRequest
    raw: bool = False
    shortened: Callable[[int], None] | None = None

    @property
    def text(self) -> str:
        """The user's last message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Who:
    """What answers a question.

    Attributes:
        task: Whose head or form answers.
        task_id: Whether the task was given or a router found it.
        adapters: Weight of each task's adapter that answers.
        composition: The composition that answers, or None.
        margin: Of a routed text, as of `lorabank.RoutedPrediction`.
        posterior: The same.
        labels: What the task may answer; empty for free text.
        revision: Number of the bank's newest change in the state that answers.
    """

    task: str
    task_id: Literal["given", "routed"]
    adapters: Mapping[str, float]
    composition: str | None = None
    margin: float | None = None
    posterior: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    revision: int = 0


@dataclass(frozen=True)
class Answered:
    """What was answered to a question.

    Attributes:
        who: What answered.
        text: The label, or the generated text.
        shares: Probability of each label; empty for free text. They add up to 1.
        written: Of free text, the rest that is known of it.
    """

    who: Who
    text: str
    shares: Mapping[str, float] = field(default_factory=dict)
    written: Written | None = None

    @property
    def probability(self) -> float | None:
        """That of the label; None for free text."""
        return self.shares.get(self.text)


class Prompts:
    """What is read of questions: by a router, and by the task that answers.

    Args:
        base: The bank's base model, whose chat template conversations are put into.
        snapshot: The bank's state.
        limit: Tokens that the base model takes; None for any number.
    """

    def __init__(self, base: OpenBase, snapshot: Snapshot, limit: int | None = None) -> None:
        self._snapshot = snapshot
        self._limit = limit
        self._base = base
        self._render = ChatTemplate(base)
        self._conversations = cache(self._learnt_conversations)

    def routed(self, question: Question, tasks: Sequence[str]) -> str:
        """The text by which one of some tasks is found: the conversation where their rows were conversations.

        Raises:
            DataError: It holds characters that no text may have, or the chat template does not take it.
        """
        check_messages(question)
        if not question.raw and all(self._conversations(task) for task in tasks):
            return self._rendered(question)
        return question.text

    def prompt(self, question: Question, task: str, form: AnswerForm) -> tuple[str, AnswerForm]:
        """What the task's form is put around, and the form.

        Raises:
            DataError: There are several messages, and the task's rows were not conversations; or as `routed`.
        """
        if question.raw:
            return question.text, replace(form, template=None)
        if self._conversations(task):
            return self.conversation(question, form.max_length), form
        if len(question.messages) == 1:
            return question.text, form
        if isinstance(form.template, ChatPrompt) and not form.labels:
            return self.conversation(question, form.max_length), replace(form, template=None)
        if question.shortened is None:
            raise DataError(
                f"task {task!r} answers single messages, and this conversation has {len(question.messages)}",
                hint="send the user's message alone; a task that learns conversations takes them",
            )
        question.shortened(1)
        return question.text, form

    def conversation(self, question: Question, max_length: int) -> str:
        """The conversation in the base's chat template; if it is long and may be shortened, it loses its oldest turns.

        Args:
            question: Holds it.
            max_length: Maximum number of tokens.

        Raises:
            DataError: The chat template does not take it.
        """
        text = self._rendered(question)
        if question.shortened is None or len(question.messages) == 1:
            return text
        if self._limit is not None:
            max_length = min(max_length, self._limit - question.generation.sampling.max_new_tokens)
        system = question.messages[:1] if question.messages[0]["role"] == "system" else ()
        rest = question.messages[len(system) :]
        while len(rest) > 1 and len(self._base.tokenizer(text, add_special_tokens=False)["input_ids"]) > max_length:
            rest = rest[2:]
            text = self._rendered(replace(question, messages=(*system, *rest)))
        if len(system) + len(rest) < len(question.messages):
            question.shortened(len(system) + len(rest))
        return text

    def _learnt_conversations(self, task: str) -> bool:
        return holds_conversations(self._snapshot.task(task), self._snapshot.adapter_of(task))

    def _rendered(self, question: Question) -> str:
        try:
            return self._render(question.messages)
        except BadCell as error:
            raise _bad(error, question) from error
        except TemplateError as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"the base's chat template does not take this conversation: {reason}",
                hint="a raw text passes the template by: generate --raw, or 'raw' of a completion",
            ) from error


def check_messages(question: Question) -> None:
    """Refuse a conversation with characters that no text may have.

    Raises:
        DataError: One of its messages holds a NUL character or a lone surrogate.
    """
    for message in question.messages:
        try:
            check_characters(message["content"])
        except BadCell as error:
            raise _bad(error, question) from error


def _bad(error: BadCell, question: Question) -> DataError:
    place = f"{error.place}: " if error.place and len(question.messages) > 1 else ""
    return DataError(f"{place}{error.problem}", hint=error.hint)


class BadText(DataError):
    """A text that no prompt can be made of.

    Attributes:
        place: Which of the texts, from 1.
        problem: What is wrong with it.
    """

    def __init__(self, place: int, problem: str, hint: str | None) -> None:
        super().__init__(f"text {place}: {problem}", hint=hint, unchanged="nothing was changed")
        self.place = place
        self.problem = problem


class UserTexts:
    """The texts of one call, each a message of the user.

    Args:
        prompts: What is read of a question.
        texts: n texts.
        raw: Whether each is a whole prompt, without a template.

    Attributes:
        given: The texts.
    """

    def __init__(self, prompts: Prompts, texts: Sequence[str], *, raw: bool) -> None:
        self.given = tuple(texts)
        self._prompts = prompts
        request = GenerationRequest(SamplingConfig())
        self._questions = [Question("", ({"role": "user", "content": text},), request, raw) for text in texts]

    def __len__(self) -> int:
        return len(self.given)

    def routed(self, tasks: Sequence[str]) -> list[str]:
        """What a router reads of each, which finds one of some tasks.

        Raises:
            BadText: No prompt can be made of one.
        """
        return [_placed(i, partial(self._prompts.routed, one, tasks)) for i, one in enumerate(self._questions)]

    def read_by(self, member: Member, i: int) -> str:
        """What a task reads of text i, before the prompt template of its form is put around it.

        Raises:
            BadText: No prompt can be made of it.
        """
        return _placed(i, partial(self._prompts.prompt, self._questions[i], member.task, member.form))[0]


def _placed(i: int, make: Callable[[], T]) -> T:
    try:
        return make()
    except DataError as error:
        raise BadText(i + 1, error.message, error.hint) from error
