"""Forms whose cells are strings: labelled texts, prompt and completion, alpaca, plain text."""

from __future__ import annotations

from collections.abc import Mapping

from lorabank.data.formats.cells import BadCell, check_label, check_text, in_column
from lorabank.data.forms.base import Form, RenderChat
from lorabank.data.forms.chat import answered, check_answer, read_messages


def _labelled(cells: Mapping[str, object], _: RenderChat) -> tuple[str, str]:
    text = check_text(cells["text"])
    with in_column("label"):
        return text, check_label(cells["label"])


def _unlabelled(cells: Mapping[str, object], _: RenderChat) -> tuple[str, str]:
    return check_text(cells["text"]), ""


def _plain(cells: Mapping[str, object], _: RenderChat) -> tuple[str, str]:
    """An empty prompt: the whole text is the completion."""
    return "", check_text(cells["text"])


def _pair(cells: Mapping[str, object], render_chat: RenderChat) -> tuple[str, str]:
    """Strings as they are; lists of messages make one conversation, whose last message is the completion."""
    prompt, completion = cells["prompt"], cells["completion"]
    if not isinstance(prompt, list):
        prompt = check_text(prompt, "prompt")
        with in_column("completion"):
            if isinstance(completion, list):
                raise BadCell("expected a text, as the prompt is one; found a list")
            return prompt, check_text(completion, "completion")
    messages = read_messages(prompt)
    with in_column("completion"):
        if isinstance(completion, list):
            answer = read_messages(completion)
            check_answer(answer)
        else:
            answer = [{"role": "assistant", "content": check_text(completion, "completion")}]
    return answered([*messages, *answer], render_chat)


def _alpaca(cells: Mapping[str, object], _: RenderChat) -> tuple[str, str]:
    """Instruction, blank line, input; the instruction alone where the input is absent or blank."""
    prompt = check_text(cells["instruction"], "instruction")
    context = cells.get("input")
    if context is not None and (not isinstance(context, str) or context.strip()):
        with in_column("input"):
            prompt = f"{prompt}\n\n{check_text(context, 'input')}"
    with in_column("output"):
        return prompt, check_text(cells["output"], "output")


CLASSIFICATION = Form(("text", "label"), _labelled, scoring="likelihood", labelled=True)
UNLABELLED = Form(("text",), _unlabelled)
PROMPT_COMPLETION = Form(("prompt", "completion"), _pair, turns=True)
ALPACA = Form(("instruction", "output"), _alpaca, optional=("input",), turns=True)
TEXT = Form(("text",), _plain, scoring="perplexity", answered=False)
