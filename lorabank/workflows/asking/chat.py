"""A conversation with a bank's language model: what was said is remembered, whichever task answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lorabank.core.commands import Command
from lorabank.core.config import SamplingConfig
from lorabank.core.errors import ConfigError, LorabankError
from lorabank.core.observer import BARS, Observer
from lorabank.core.settings import setting_names
from lorabank.core.task_kinds import generating
from lorabank.workflows.asking.chat_config import ChatConfig
from lorabank.workflows.open_bank import OpenBank

if TYPE_CHECKING:
    from lorabank.models.answering.text_answers import TextAnswerer
    from lorabank.workflows.asking.mixed import MixedAnswers
    from lorabank.workflows.asking.questions import Answered, Message, Question

_BATCH = 16
"""Texts of a forward pass, as of `generate`: more than one where an answer adds up over tasks."""


class ChatAnswer(NamedTuple):
    """An answer in a conversation.

    Attributes:
        text: What was said, also where the asker ended it.
        task: Whose form answered; ``"none"`` for the bare base.
        task_id: Whether the task was given or a router found it.
        adapters: Weight of each task's adapter that answered.
        composition: The composition that answered, or None.
        probability: Of a label among its task's labels; None for free text.
        margin: Of a routed question, as of `lorabank.workflows.results.RoutedPrediction`.
        posterior: The same.
        finish: ``"stop"`` at an end token, a stop text or a label, ``"length"`` at the maximum number of tokens,
            ``"ended"`` where the asker ended it.
        tokens: Number of tokens that were generated; 0 for a label.
        left_out: Number of earlier messages that the task did not read: it takes single messages, or less text.
    """

    text: str
    task: str
    task_id: Literal["given", "routed"]
    adapters: Mapping[str, float]
    composition: str | None
    probability: float | None
    margin: float | None
    posterior: Mapping[str, float]
    finish: Literal["stop", "length", "ended"]
    tokens: int
    left_out: int


class Chat:
    """A conversation, made by `lorabank.api.chat`; the model is loaded with it.

    What other processes change in the bank is seen by the next question.

    Args:
        opened: The bank.
        config: What answers first, and how.
        observer: Gets notices.

    Attributes:
        answers: Name of the task or composition that answers, ``"none"`` for the bare base.
        remembers: Whether the base has a chat template, which holds a conversation; else each message is answered
            without those before it.
        messages: What was said so far, by ``role`` and ``content``, without the system prompt.
        last: The last answer, None before it.
    """

    def __init__(self, opened: OpenBank, config: ChatConfig, observer: Observer) -> None:
        from lorabank.workflows.asking.predict import check_generates

        snapshot = opened.refresh()
        check_generates(snapshot)
        self.remembers = snapshot.base.chat_template_hash is not None
        _check(config, remembers=self.remembers, base=snapshot.base.name)
        self._opened, self._config, self._observer = opened, config, observer
        self.messages: list[Message] = []
        self.last: ChatAnswer | None = None
        self._asked = 0
        self.answers = self._usual()
        if config.task is not None:
            self.ask_task(config.task)
        elif config.composition is not None:
            self.ask_composition(config.composition)
        self._load()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names that may answer as tasks."""
        return tuple(task.name for task in self._opened.refresh().tasks)

    @property
    def compositions(self) -> tuple[str, ...]:
        """The names that may answer as compositions."""
        return tuple(composition.name for composition in self._opened.refresh().compositions)

    def ask_task(self, name: str) -> None:
        """Let a task answer from now on, or the bare base under the name ``"none"``.

        Raises:
            NotFoundError: There is no such task.
        """
        from lorabank.workflows.asking.bare import BARE

        if name != BARE:
            self._opened.refresh().task(name)
        self.answers = name

    def ask_composition(self, name: str) -> None:
        """Let a composition answer from now on.

        Raises:
            NotFoundError: There is no such composition.
        """
        self._opened.refresh().composition(name)
        self.answers = name

    def ask(
        self, text: str, hear: Callable[[str], None] | None = None, over: Callable[[], bool] | None = None
    ) -> ChatAnswer:
        """Say something, and get the answer.

        Args:
            text: What the user says.
            hear: Called with each further piece of free text; all pieces together are the answer.
            over: Asked after each token whether the answer shall end there. What was said until then is kept.

        Raises:
            DataError: The chat template does not take the text, or it holds characters that no text may have.
            NotFoundError: What answers was removed.
            DivergedError: The model gives no finite probabilities.
        """
        from lorabank.models.answering.replies import GenerationRequest
        from lorabank.workflows.asking.questions import Question

        self._opened.refresh()
        head: list[Message] = [{"role": "system", "content": self._config.system}] if self._config.system else []
        messages = (*head, *self.messages, {"role": "user", "content": text})
        read = len(messages)

        def shortened(count: int) -> None:
            nonlocal read
            read = min(read, count)

        question = Question(
            self.answers,
            messages if self.remembers else messages[-1:],
            GenerationRequest(self._sampling(), hear=hear, over=over),
            shortened=shortened,
        )
        one = self._answer(question)
        written = one.written
        answer = ChatAnswer(
            one.text,
            one.who.task,
            one.who.task_id,
            one.who.adapters,
            one.who.composition,
            one.probability,
            one.who.margin,
            one.who.posterior,
            written.finish if written else "stop",
            written.tokens if written else 0,
            len(messages) - read if self.remembers else len(messages) - 1,
        )
        self._asked, self.last = self._asked + 1, answer
        if answer.text or answer.finish != "ended":
            self.messages += [messages[-1], {"role": "assistant", "content": answer.text}]
        return answer

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages.clear()
        self.last = None

    def save(self, target: str | Path) -> Path:
        """Write the conversation as one row of ``messages``, which `add_task` learns from.

        Raises:
            ConfigError: Nothing was said, or the file would lie in the bank.
            ExistsError: The file exists.
            StorageError: It cannot be written.
        """
        from lorabank.data.forms.chat import MESSAGES
        from lorabank.exchange.safe_folders import check_new_file, new_file

        if not self.messages:
            raise ConfigError("nothing was said that could be saved", unchanged="nothing was written")
        path = Path(target)
        check_new_file(path, self._opened.bank.path, overwrite=False, read=None)
        head = [{"role": "system", "content": self._config.system}] if self._config.system else []
        row = {MESSAGES.columns[0]: [*head, *self.messages]}
        with new_file(path) as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return path

    def _usual(self) -> str:
        from lorabank.workflows.asking.bare import BARE
        from lorabank.workflows.asking.predict import usual

        named = self._config.task or self._config.composition
        snapshot = self._opened.snapshot
        return named or (usual(snapshot) if snapshot.tasks else BARE)

    def _sampling(self) -> SamplingConfig:
        """How the next answer is generated."""
        config, limit = self._config, self._load()
        own = SamplingConfig(**{name: getattr(config, name) for name in setting_names(SamplingConfig)})
        most = config.max_new_tokens if limit is None else max(1, min(config.max_new_tokens, limit // 2))
        return replace(own, max_new_tokens=most, seed=(config.seed + self._asked) % 2**32)

    def _load(self) -> int | None:
        """Load what answers unless it is loaded; gives the tokens that the base takes, None for any number."""
        from lorabank.workflows.asking.bare import BARE

        return self._bare.base.max_length if self.answers == BARE else self._mixed.max_length

    def _answer(self, question: Question) -> Answered:
        from lorabank.workflows.asking.bare import BARE, bare_conversation

        if question.model == BARE:
            return bare_conversation(self._opened.base, self._opened.snapshot, self._bare, question)
        found: list[Answered | LorabankError] = []
        self._mixed.answer([question], lambda i, who: True, lambda i, one: found.append(one))
        (one,) = found
        if isinstance(one, LorabankError):
            raise one
        return one

    @property
    def _mixed(self) -> MixedAnswers:
        from lorabank.workflows.asking.mixed import MixedAnswers
        from lorabank.workflows.assemble import RuntimeSettings

        opened, config, notice = self._opened, self._config, self._observer.notice
        settings = RuntimeSettings(config.device, "auto", _BATCH, max_resident=config.max_resident)
        return opened.keep(("chat", settings), lambda: MixedAnswers(opened, settings, notice))

    @property
    def _bare(self) -> TextAnswerer:
        from lorabank.workflows.asking.bare import bare_model

        opened, device = self._opened, self._config.device
        return opened.keep(("chat", device), lambda: bare_model(opened.base, device, _BATCH))


def _check(config: ChatConfig, *, remembers: bool, base: str) -> None:
    """Refuse settings that mean nothing together.

    Raises:
        ConfigError: A task and a composition are to answer, or a system prompt has no place.
    """
    if config.task and config.composition:
        raise ConfigError(
            f"both task {config.task!r} and composition {config.composition!r} are to answer",
            hint="leave one out; during the conversation /task and /composition choose another",
            unchanged="nothing was changed",
        )
    if config.system and not remembers:
        raise ConfigError(
            f"--system needs a chat template, and the tokenizer of {base!r} has none",
            hint="leave --system out, or use an instruct model in a bank of its own",
            commands=[Command("-b", "NEW", "init", "--base", "NAME", "--task-type", generating().name)],
            unchanged="nothing was changed",
        )


def chat(opened: OpenBank, config: ChatConfig = ChatConfig(), *, observer: Observer = BARS) -> Chat:
    """Begin a conversation with the bank's language model, in the state of a task, a composition or the bare base.

    Args:
        opened: The bank.
        config: What answers, and how.
        observer: Gets notices.

    Raises:
        ConfigError: A task must be named, or the settings do not fit together.
        IncompatibleError: The bank's base is a classifier.
        NotFoundError: There is no bank, no such task or composition.
    """
    return Chat(opened, config, observer)
