"""What the engine asks for answers: the bank's own model, or a program that makes the tokens in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import LorabankError
from lorabank.serving.errors import Report
from lorabank.workflows.asking.mixed import More
from lorabank.workflows.asking.planned import Begun
from lorabank.workflows.asking.questions import Answered, Question, Who
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank

Deliver = Callable[[int, Answered | Exception], None]
"""Called once with each question's number and its answer, or why it has none; from any thread."""


class Answers(Protocol):
    """What answers in one state of a bank; `lorabank.workflows.asking.mixed.MixedAnswers` is the bank's own model."""

    @property
    def max_length(self) -> int | None:
        """Tokens that the base model takes; None for any number."""
        ...

    def route(self, questions: Sequence[Question], deliver: Callable[[int, Who | LorabankError], None]) -> None:
        """Find what would answer each question."""
        ...

    def answer(self, questions: Sequence[Question], begun: Begun, deliver: Deliver, more: More | None = None) -> None:
        """Answer questions, or see to it that they are answered later.

        Args:
            questions: Those that are there.
            begun: Called with what answers each question, before it does; gives whether the answer is wanted.
            deliver: Called once with each question that is wanted.
            more: Gives others that came meanwhile; it need not be called.

        Raises:
            Exception: All of them failed, and nothing will be delivered.
        """
        ...


class Backend(Protocol):
    """A program that makes the tokens of answers."""

    @property
    def name(self) -> str:
        """Which program it is."""
        ...

    def start(self) -> None:
        """Be ready for `answers`."""
        ...

    def answers(
        self, opened: OpenBank, settings: RuntimeSettings, notice: Callable[[str], None], report: Report
    ) -> Answers:
        """What answers in a state of a bank, with one task at least.

        Args:
            opened: The bank.
            settings: How the bank's own model reads what routers need.
            notice: Gets what the operator should know.
            report: Logs errors.
        """
        ...

    def refuses(self, snapshot: Snapshot, name: str) -> bool:
        """Whether it is known that a task or composition of the bank cannot be answered."""
        ...

    def reachable(self) -> bool:
        """Whether the program takes calls."""
        ...

    def stop(self) -> None:
        """Let everything go that is under way; no answer is delivered after it."""
        ...
