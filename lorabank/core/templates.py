"""Prompt templates of labelled texts: ``{text}`` and ``{labels}``, replaced literally (templates hold JSON braces)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from lorabank.core.errors import ConfigError

DEFAULT_TEMPLATE = "{text}\nOption: {labels}\nAnswer:"

_UNCHANGED = "nothing was changed"


class ChatPrompt(str):
    """A prompt template that a base's chat template made: one user's turn around ``{text}``, up to the answer.

    The answer begins where it ends. The words of another template are parted from their answer by a blank.
    """

    __slots__ = ()


def parted(template: str | None) -> bool:
    """Whether a blank stands between a prompt of this template and its answer."""
    return template is not None and not isinstance(template, ChatPrompt)


_SLOTS = ("{text}", "{labels}")
_ANY_SLOT = re.compile(r"\{\s*(\w+)\s*\}")


def check_template(template: str) -> None:
    """Refuse a template that does not hold ``{text}`` once, or in which a slot is misspelt.

    Raises:
        ConfigError: Naming the slot.
    """
    hint = 'for example --set "prompt_template={text} Is it {labels}? Answer:"'
    if "\x00" in template:
        where = template.index("\x00") + 1
        raise ConfigError(f"the prompt template holds a NUL character at position {where}", unchanged=_UNCHANGED)
    for found, meant in _slots(template):
        if found not in _SLOTS:
            message = f"the prompt template has no slot {found!r}. Did you mean '{{{meant}}}'?"
            raise ConfigError(message, unchanged=_UNCHANGED, hint=hint)
    count = template.count("{text}")
    if count != 1:
        problem = "has no {text}, so it would be the same for every text" if not count else "has {text} more than once"
        raise ConfigError(f"the prompt template {problem}", unchanged=_UNCHANGED, hint=hint)


def slot_in(text: str) -> str | None:
    """The first slot that a text spells, rightly or nearly."""
    return next((found for found, _ in _slots(text)), None)


def _slots(text: str) -> Iterator[tuple[str, str]]:
    """What is, or nearly is, a slot, and the name that is meant."""
    for match in _ANY_SLOT.finditer(text):
        meant = get_close_matches(match[1].casefold(), ["text", "labels"], n=1, cutoff=0.8)
        if meant:
            yield match[0], meant[0]


def fill_labels(template: str, labels: Sequence[str]) -> str:
    """The template with its labels in the place of ``{labels}``, separated by commas."""
    return template.replace("{labels}", ", ".join(labels))


def fill_text(template: str, text: str) -> str:
    """The prompt of a text; the template's labels are filled in already."""
    before, _, behind = template.partition("{text}")
    return before + text + behind
