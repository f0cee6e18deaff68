"""Why the page does not do what was asked."""

from __future__ import annotations

from lorabank.core.commands import Command
from lorabank.core.errors import LorabankError


class PageError(Exception):
    """An answer that is a page with one sentence.

    Args:
        status: HTTP status.
        message: The sentence, without its full stop.
        hint: What to do.
        commands: What to type next.
    """

    def __init__(self, status: int, message: str, *, hint: str = "", commands: tuple[Command, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint
        self.commands = commands


def sentence(error: LorabankError) -> str:
    """What went wrong, with what to do."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
