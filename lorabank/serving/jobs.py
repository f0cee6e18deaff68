"""One question of a call, and what its caller hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lorabank.workflows.asking.questions import Answered, Question, Who

Event = Who | str | Answered | Exception
"""What becomes of a question: what answers it, pieces of free text, and at the end the answer or an error."""

Check = Callable[[Who], None]
"""Raises a `CallError` where a question must not be answered by what would answer it."""


@dataclass(eq=False)
class Job:
    """One question of a call.

    Attributes:
        question: The question.
        tell: Called with each event, in the thread of the model or of the backend; it must not wait.
        pieces: Whether pieces of free text are wanted.
        routing: Whether only what would answer is wanted: the event `Who` is then the last one.
        check: Looks at what would answer before the answer is computed.
        born: When it came, of the monotonic clock.
        ended: Whether `tell` was called with the last event.
        gone: Whether nobody waits for it any longer.
        again: The text that was generated since the answer began, or began again.
        heard: The text whose pieces `tell` was called with.
    """

    question: Question
    tell: Callable[[Event], None]
    pieces: bool = False
    routing: bool = False
    check: Check | None = None
    born: float = field(default_factory=time.monotonic)
    ended: bool = False
    gone: bool = False
    heard: str = ""
    again: str = ""

    def end(self, event: Event) -> None:
        """Call `tell` with the last event; a second one is dropped."""
        if not self.ended:
            self.ended = True
            self.tell(event)

    def hear(self, piece: str) -> None:
        """Call `tell` with a piece of text, of an answer that began again only with what is new.

        Raises:
            RuntimeError: The answer that began again is another one.
        """
        self.again += piece
        new = self.again[len(self.heard) :]
        if not self.again.startswith(self.heard) and not self.heard.startswith(self.again):
            raise RuntimeError("an answer that was passed on in part came out differently when it began again")
        if new and not self.ended:
            self.heard = self.again
            self.tell(new)
