"""Single questions to tasks and compositions of a bank, and what becomes of each: for callers that mix them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from jinja2 import TemplateError

from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import DataError
from lorabank.core.templates import ChatPrompt
from lorabank.data.formats.cells import BadCell, check_characters
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.replies import GenerationRequest, Written
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.assemble import holds_conversations
from lorabank.workflows.task_data import ChatTemplate

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
    """

    model: str
    messages: tuple[Message, ...]
    generation: GenerationRequest
    raw: bool = False

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
    """

    def __init__(self, base: OpenBase, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._render = ChatTemplate(base)

    def routed(self, question: Question, tasks: Sequence[str]) -> str:
        """The text by which one of some tasks is found: the conversation where their rows were conversations.

        Raises:
            DataError: It holds characters that no text may have, or the chat template does not take it.
        """
        for message in question.messages:
            try:
                check_characters(message["content"])
            except BadCell as error:
                raise _bad(error) from error
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
            return self._rendered(question), form
        if len(question.messages) == 1:
            return question.text, form
        if isinstance(form.template, ChatPrompt) and not form.labels:
            return self._rendered(question), replace(form, template=None)
        raise DataError(
            f"task {task!r} answers single messages, and this conversation has {len(question.messages)}",
            hint="send the user's message alone; a task that learns conversations takes them",
        )

    def _conversations(self, task: str) -> bool:
        return holds_conversations(self._snapshot.task(task), self._snapshot.adapter_of(task))

    def _rendered(self, question: Question) -> str:
        try:
            return self._render(question.messages)
        except BadCell as error:
            raise _bad(error) from error
        except TemplateError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the base's chat template does not take this conversation: {reason}") from error


def _bad(error: BadCell) -> DataError:
    place = f"{error.place}: " if error.place else ""
    return DataError(f"{place}{error.problem}", hint=error.hint)
