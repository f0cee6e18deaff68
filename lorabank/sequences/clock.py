"""How long a sequence will still take, from the pace so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping


class Clock:
    """Counts work done against the time it took.

    Args:
        parts: For each cell, name to work; in any unit that takes about equally long everywhere.
    """

    def __init__(self, parts: Iterable[Mapping[str, float]]) -> None:
        self._left = sum(sum(part.values()) for part in parts)
        self._done = 0.0
        self._begun = time.monotonic()

    def done(self, work: float) -> None:
        """This much was done now."""
        self._left -= work
        self._done += work

    def skip(self, work: float) -> None:
        """This much was done before."""
        self._left -= work

    def left(self) -> str:
        """``" (about 12 min left)"``; empty before anything is known."""
        if not self._done:
            return ""
        return f" (about {shown((time.monotonic() - self._begun) / self._done * self._left)} left)"


def shown(seconds: float) -> str:
    """Seconds for people: ``"40 s"``, ``"12 min"``, ``"2.3 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
