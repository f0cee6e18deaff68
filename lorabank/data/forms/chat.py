"""Forms whose cells are conversations: ``messages``, sharegpt.

The last message, the assistant's, is the completion; what stands before it is rendered by the tokenizer's own chat
template, up to where the assistant begins to answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorabank.core.settings import nearest
from lorabank.data.formats.base import bad_row
from lorabank.data.formats.cells import BadCell, check_text, shown
from lorabank.data.forms.base import Form, RenderChat
from lorabank.data.rows import Rows

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

Message = dict[str, str]


def read_messages(
    cell: object,
    *,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] = ROLES,
) -> list[Message]:
    """The messages of a cell as ``role`` and ``content``.

    Args:
        cell: A list of objects.
        role_key: Key of who speaks.
        content_key: Key of what is said.
        roles: What may stand under ``role_key``, and the role it means.

    Raises:
        BadCell: The cell is not such a list; names the message by its position, from 1, and the key.
    """
    if not isinstance(cell, list):
        raise BadCell(f"expected a list of messages, found {shown(cell)}")
    if not cell:
        raise BadCell("the conversation is empty")
    messages = []
    for number, item in enumerate(cell, start=1):
        try:
            messages.append(_message(item, role_key, content_key, roles))
        except BadCell as error:
            error.place = f"message {number}" + (f", key {error.place!r}" if error.place else "")
            raise
    return messages


def _message(item: object, role_key: str, content_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(item, dict):
        raise BadCell(f"expected an object with {role_key!r} and {content_key!r}, found {shown(item)}")
    for key in (role_key, content_key):
        if key not in item:
            keys = list(item)
            hint = "--map conversations=messages" if key == "from" and "role" in item else None
            there = ", ".join(map(repr, keys)) or "none"
            raise BadCell(f"no key {key!r}; its keys are {there}{nearest(key, keys)}", hint=hint)
    for key in ("tool_calls", "function_call"):
        if item.get(key):
            raise BadCell("a tool call, which cannot be learnt as text", place=key)
    said = item[role_key]
    if not isinstance(said, str):
        raise BadCell(f"expected a role, found {shown(said)}", place=role_key)
    if said not in roles:
        known = ", ".join(repr(role) for role in roles)
        raise BadCell(f"unknown role {said!r}; expected one of {known}{nearest(said, list(roles))}", place=role_key)
    try:
        return {"role": roles[said], "content": check_text(item[content_key])}
    except BadCell as error:
        error.place = content_key
        raise


def check_answer(messages: Sequence[Message]) -> None:
    """Refuse a conversation without an answer to learn.

    Raises:
        BadCell: No assistant speaks, or another speaks last.
    """
    last = messages[-1]["role"]
    if last == "assistant":
        return
    if any(message["role"] == "assistant" for message in messages):
        problem = f"the conversation ends with the {last}; the answer to learn must come last"
        raise BadCell(problem, place=f"message {len(messages)}")
    raise BadCell("the conversation has no assistant turn, so there is nothing to learn")


def answered(messages: Sequence[Message], render_chat: RenderChat) -> tuple[str, str]:
    """Prompt and completion of a conversation.

    Raises:
        BadCell: There is no answer, nothing stands before it, or the chat template refuses the conversation.
    """
    check_answer(messages)
    *before, answer = messages
    if not before:
        raise BadCell("nothing comes before the assistant's answer", place="message 1")
    return render(before, render_chat), answer["content"]


def render(messages: Sequence[Message], render_chat: RenderChat) -> str:
    """The messages as the chat template writes them.

    Raises:
        BadCell: The chat template refuses them, for example two turns of one role.
    """
    from jinja2 import TemplateError

    try:
        return render_chat(messages)
    except TemplateError as error:
        reason = " ".join(str(error).split())
        raise BadCell(f"the chat template refuses the conversation: {reason}") from error


class Rendered:
    """A way to render conversations that knows what it rendered.

    Args:
        render_chat: Renders them.
    """

    def __init__(self, render_chat: RenderChat) -> None:
        self._render = render_chat
        self.rendered: set[str] = set()

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The messages as the chat template writes them."""
        text = self._render(messages)
        self.rendered.add(text)
        return text

    def every(self, rows: Rows) -> Rows:
        """The rows with each prompt that was not a conversation as the turn of a user.

        Raises:
            DataError: The chat template refuses one; names its place.
        """
        texts = []
        for index, text in enumerate(rows.texts):
            try:
                texts.append(text if text in self.rendered else render([{"role": "user", "content": text}], self))
            except BadCell as error:
                where = f"{rows.unit} {rows.lines[index]}, column {rows.columns[0]!r}"
                raise bad_row(rows.source, where, error.problem, hint=error.hint) from error
        return replace(rows, texts=tuple(texts))


def _messages(cells: Mapping[str, object], render_chat: RenderChat) -> tuple[str, str]:
    return answered(read_messages(cells["messages"]), render_chat)


def _sharegpt(cells: Mapping[str, object], render_chat: RenderChat) -> tuple[str, str]:
    messages = read_messages(cells["conversations"], role_key="from", content_key="value", roles=SHAREGPT_ROLES)
    return answered(messages, render_chat)


MESSAGES = Form(("messages",), _messages, conversations=True)
SHAREGPT = Form(("conversations",), _sharegpt, conversations=True)
