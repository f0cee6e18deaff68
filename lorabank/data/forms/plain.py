"""Forms whose cells are strings: labelled texts, prompt and completion, alpaca, plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lorabank.core.errors import ConfigError
from lorabank.core.methods import values_of
from lorabank.core.settings import setting
from lorabank.core.templates import check_template, fill_labels
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.cells import BadCell, check_label, check_text, in_column
from lorabank.data.forms.base import Form, RenderChat
from lorabank.data.forms.chat import answered, check_answer, read_messages
from lorabank.data.forms.labels import label_words


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


@dataclass(frozen=True)
class Labelled(Form):
    """Texts with a label each."""

    labelled: bool = True

    prompt_template: str | None = setting(
        None, "Text to text: the prompt of a text, with {text} and, if wanted, {labels}."
    )
    label_words: str | None = setting(None, "Text to text: words for labels, as 0=negative,1=positive.")

    def check(self, *, text_to_text: bool) -> None:
        """Refuse both settings for a classifier, and a template that cannot work."""
        if text_to_text:
            if self.prompt_template is not None:
                check_template(self.prompt_template)
            return
        for name, value in values_of(self).items():
            if value is not None:
                raise ConfigError(
                    f"{name} is for text to text, and this bank is for classification",
                    unchanged=UNCHANGED,
                    hint=f"leave out --set {name}",
                )

    def words(self, labels: Sequence[str]) -> Mapping[str, str] | None:
        """Those of ``label_words``."""
        return None if self.label_words is None else label_words(self.label_words, labels)

    def template(self, labels: Sequence[str]) -> str:
        """``prompt_template``, or what every form has."""
        if self.prompt_template is None:
            return super().template(labels)
        return fill_labels(self.prompt_template, labels)


@dataclass(frozen=True)
class Prompted(Form):
    """Prompts that are texts, with an answer each."""

    chat_template: Literal["auto", "none"] = setting(
        "auto", "Text to text: auto puts prompts into the base's chat template, where it has one; none does not."
    )

    @property
    def turns(self) -> bool:
        """Whether ``chat_template`` lets them be."""
        return self.chat_template == "auto"


CLASSIFICATION = Labelled(("text", "label"), _labelled, scoring="likelihood")
UNLABELLED = Form(("text",), _unlabelled)
PROMPT_COMPLETION = Prompted(("prompt", "completion"), _pair)
ALPACA = Prompted(("instruction", "output"), _alpaca, optional=("input",))
TEXT = Form(("text",), _plain, scoring="perplexity", answered=False)
