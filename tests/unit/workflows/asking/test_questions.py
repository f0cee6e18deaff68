"""What is read of a text: by a router, and by the task that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import TemplateError

from lorabank.data.formats.cells import BadCell
from lorabank.models.answering.base import AnswerForm
from lorabank.workflows.asking import questions
from lorabank.workflows.asking.questions import BadText, Prompts, UserTexts

CHAT: Any = SimpleNamespace(task="chat", form=AnswerForm((), 64))
PLAIN: Any = SimpleNamespace(task="plain", form=AnswerForm((), 64))


def render(messages: Sequence[Mapping[str, str]]) -> str:
    text = messages[-1]["content"]
    if text == "refused":
        raise TemplateError("the roles\n  must alternate")
    if text == "<s>":
        raise BadCell("'<s>' is a control token", place="message 1", hint="write it with a space inside")
    return f"user: {text}"


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Prompts:
    """The task ``chat`` learnt conversations."""
    snapshot: Any = SimpleNamespace(task=lambda name: name, adapter_of=lambda name: name)
    monkeypatch.setattr(questions, "ChatTemplate", lambda base: render)
    monkeypatch.setattr(questions, "holds_conversations", lambda task, adapter: task == "chat")
    base: Any = None
    return Prompts(base, snapshot)


def test_each_task_reads_what_it_learnt_to_read(prompts: Prompts) -> None:
    texts = UserTexts(prompts, ["a", "b"], raw=False)
    assert texts.routed(["chat"]) == ["user: a", "user: b"]
    assert texts.routed(["chat", "plain"]) == ["a", "b"]
    assert [texts.read_by(one, 1) for one in (CHAT, PLAIN)] == ["user: b", "b"]
    raw = UserTexts(prompts, ["refused"], raw=True)
    assert (raw.routed(["chat"]), raw.read_by(CHAT, 0)) == (["refused"], "refused")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("refused", "the base's chat template does not take this conversation: the roles must alternate", "--raw"),
        ("<s>", "'<s>' is a control token", "write it with a space inside"),
    ],
)
def test_a_text_that_no_prompt_can_be_made_of_is_named_in_one_line(
    prompts: Prompts, text: str, message: str, hint: str
) -> None:
    texts = UserTexts(prompts, ["a", text], raw=False)
    assert texts.read_by(PLAIN, 1) == text
    for ask in (lambda: texts.routed(["chat"]), lambda: texts.read_by(CHAT, 1)):
        with pytest.raises(BadText) as caught:
            ask()
        assert (caught.value.message, caught.value.place, caught.value.problem) == (f"text 2: {message}", 2, message)
        assert hint in str(caught.value.hint)
        assert caught.value.unchanged == "nothing was changed"
