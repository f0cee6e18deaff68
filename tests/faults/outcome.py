"""What a harness reports: how often it tried, and what was wrong afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT_EXAMPLES = 5


@dataclass
class Outcome:
    """Counts of one run.

    Attributes:
        tries: Faults that were injected.
        lost: Something acknowledged was gone afterwards, or something removed was back.
        damaged: The bank was neither before nor after, or ``verify --full`` found something.
        uncaught: Anything else: another error than lorabank's, a wrong exit code, a bank that could not go on.
        examples: The first few of them, in words.
        notes: What a reader should know beside the counts.
        skipped: Why nothing was tried, None when it was.
    """

    tries: int = 0
    lost: int = 0
    damaged: int = 0
    uncaught: int = 0
    examples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def findings(self) -> int:
        """Everything that must not be."""
        return self.lost + self.damaged + self.uncaught

    @property
    def enough(self) -> bool:
        """Whether more findings would tell nothing new."""
        return self.findings >= KEPT_EXAMPLES

    def find(self, kind: str, message: str) -> None:
        """Count a finding of the kind ``"lost"``, ``"damaged"`` or ``"uncaught"``."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < KEPT_EXAMPLES:
            self.examples.append(f"{kind}: {' '.join(message.split())[:300]}")

    def add(self, other: Outcome) -> None:
        """Take another run's counts in."""
        self.tries += other.tries
        self.lost += other.lost
        self.damaged += other.damaged
        self.uncaught += other.uncaught
        self.examples = [*self.examples, *other.examples][:KEPT_EXAMPLES]
        self.notes += other.notes
        self.skipped = self.skipped or other.skipped


def outcome_of(result: Outcome | Mapping[str, Any]) -> Outcome:
    """A harness may also report a plain dictionary with the keys of the four counts."""
    return result if isinstance(result, Outcome) else Outcome(**result)


def skipped(reason: str) -> Outcome:
    """Nothing was tried, and why."""
    return Outcome(skipped=reason)
