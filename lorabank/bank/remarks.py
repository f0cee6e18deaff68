"""What a user writes to a task or composition: a note and tags."""

from __future__ import annotations

from collections.abc import Iterable

from lorabank.bank.layout import check_name
from lorabank.core.errors import ConfigError
from lorabank.core.limits import MAX_NOTE, MAX_TAGS

_UNCHANGED = "the bank was not changed"


def check_note(text: str | None) -> str | None:
    """A note as it is stored, without blanks around it; None where nothing is left.

    Raises:
        ConfigError: It is too long, or no text.
    """
    note = (text or "").strip()
    if len(note) > MAX_NOTE:
        raise ConfigError(f"a note of {len(note)} characters; at most {MAX_NOTE} are kept", unchanged=_UNCHANGED)
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the note is not UTF-8", unchanged=_UNCHANGED) from error
    return note or None


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as they are stored: sorted, each once.

    Raises:
        ConfigError: One is no word as a name is, or there are too many.
    """
    found = tuple(sorted({check_name(tag) for tag in tags}))
    if len(found) > MAX_TAGS:
        raise ConfigError(f"{len(found)} tags; at most {MAX_TAGS} are kept", unchanged=_UNCHANGED)
    return found
