"""The base model of a bank without any adapter, asked in its own chat template: what it says before it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import Command
from lorabank.core.config import GenerateConfig, PredictConfig
from lorabank.core.errors import ConfigError, at_work
from lorabank.core.observer import Observer
from lorabank.core.shelves import GENERATING
from lorabank.core.task_kinds import task_kind
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.finite import explained
from lorabank.workflows.asking.questions import Answered, Prompts, Question, Who, check_messages
from lorabank.workflows.asking.writing import requests_of
from lorabank.workflows.results import Prediction
from lorabank.workflows.task_data import ChatTemplate

BARE = "none"
"""What stands in the place of a task's name, which may not be this word."""

_MOST = 131072
"""Tokens of a prompt for a model that takes any number."""


def bare_answerer(
    opened: OpenBase, config: PredictConfig | GenerateConfig, observer: Observer
) -> Callable[[Sequence[str], Sequence[int]], tuple[Prediction, ...]]:
    """What the base says to texts of some numbers, each a user's turn in its chat template where it has one.

    The base is loaded with the first texts and stays.

    Raises:
        ConfigError: Labels are asked for, which a task alone has, or a composition or a state beside the base.
        IncompatibleError: The chat template takes no single turn of a user.
    """
    base = opened.record
    if not isinstance(config, GenerateConfig):
        asked = Command("predict", "--task", "NAME", "TEXT")
        if task_kind(base.task_type).generates:
            asked = Command("generate", "--task", "none", "TEXT")
        raise ConfigError(
            "the bare base has no labels (only a task brings them), so it predicts none",
            commands=[asked],
            unchanged="nothing was changed",
        )
    if beside := next((name for name in ("composition", "state") if getattr(config, name) is not None), None):
        raise ConfigError(
            f"--task none asks the bare base, and --{beside} is about adapters",
            hint=f"leave out --{beside}",
            unchanged="nothing was changed",
        )
    chat = base.chat_template_hash is not None and not config.raw
    template = ChatTemplate(opened).turn("--raw takes the text as the whole prompt") if chat else None
    observer.notice(
        f"no adapter answers, the bare base {base.name} does: "
        + ("the text is a user's turn in its chat template" if chat else "the text is the whole prompt")
    )

    @cache
    def answerer() -> TextAnswerer:
        return bare_model(opened, config.device, config.batch_size, template)

    def answer(texts: Sequence[str], numbers: Sequence[int]) -> tuple[Prediction, ...]:
        with at_work("the bare base"), explained(answerer().base.model):
            (form,) = answerer().forms
            requests = requests_of(config, numbers)
            written = answerer().write(texts, [form] * len(texts), lambda rows: None, requests)
        return tuple(_told(text, one.text) for text, one in zip(texts, written, strict=True))

    return answer


def bare_model(opened: OpenBase, device: str, batch_size: int, template: str | None = None) -> TextAnswerer:
    """The loaded base without any adapter, which takes texts in one prompt template, or as whole prompts."""
    loaded = opened.load(device=device, dtype="auto")
    form = AnswerForm(labels=(), max_length=loaded.max_length or _MOST, scoring=GENERATING, template=template)
    return TextAnswerer(loaded, opened.record.task_type, (form,), batch_size)


def bare_conversation(opened: OpenBase, snapshot: Snapshot, model: TextAnswerer, question: Question) -> Answered:
    """What the bare base says in a conversation; without a chat template it reads the last message alone.

    Args:
        opened: The base.
        snapshot: The bank's state.
        model: What `bare_model` gave, without a template.
        question: The conversation.

    Raises:
        DataError: The chat template does not take it, or it holds characters that no text may have.
    """
    check_messages(question)
    (form,) = model.forms
    text = question.text
    if opened.record.chat_template_hash is not None:
        text = Prompts(opened, snapshot, model.base.max_length).conversation(question, form.max_length)
    with at_work("the bare base"), explained(model.base.model):
        (written,) = model.write([text], [form], lambda rows: None, [question.generation])
    return Answered(Who(BARE, "given", {}), written.text, written=written)


def _told(text: str, answer: str) -> Prediction:
    return Prediction(
        text=text,
        label=answer,
        probability=None,
        task=BARE,
        task_id="given",
        adapters={},
        state="base",
        composition=None,
    )
