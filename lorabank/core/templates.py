"""Prompt templates of labelled texts: ``{text}`` and ``{labels}``, replaced literally (templates hold JSON braces)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from lorabank.core.errors import ConfigError

DEFAULT_TEMPLATE = "{text}\nOption: {labels}\nAnswer:"

_UNCHANGED = "nothing was changed"
_SLOTS = ("{text}", "{labels}")
_ANY_SLOT = re.compile(r"\{\s*(\w+)\s*\}")


def check_template(template: str) -> None:
    """Refuse a template that does not hold ``{text}`` once, or in which a slot is misspelt.

    Raises:
        ConfigError: Naming the slot.
    """
    hint = 'for example --prompt-template "{text} Is it {labels}? Answer:"'
    if "\x00" in template:
        where = template.index("\x00") + 1
        raise ConfigError(f"the prompt template holds a NUL character at position {where}", unchanged=_UNCHANGED)
    for match in _ANY_SLOT.finditer(template):
        meant = get_close_matches(match[1].casefold(), ["text", "labels"], n=1, cutoff=0.8)
        if meant and match[0] not in _SLOTS:
            message = f"the prompt template has no slot {match[0]!r}. Did you mean '{{{meant[0]}}}'?"
            raise ConfigError(message, unchanged=_UNCHANGED, hint=hint)
    count = template.count("{text}")
    if count != 1:
        problem = "has no {text}, so it would ask the same of every text" if not count else "has {text} more than once"
        raise ConfigError(f"the prompt template {problem}", unchanged=_UNCHANGED, hint=hint)


def fill_labels(template: str, labels: Sequence[str]) -> str:
    """The template with its labels in the place of ``{labels}``, separated by commas."""
    return template.replace("{labels}", ", ".join(labels))


def fill_text(template: str, text: str) -> str:
    """The prompt of a text; the template's labels are filled in already."""
    before, _, behind = template.partition("{text}")
    return before + text + behind
