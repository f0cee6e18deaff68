"""Where work of several steps stands, and how long the rest takes at the pace of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lorabank.core.observer import Observer
from lorabank.sequences.clock import shown

_FIRST = 8
"""Units of the first job after which the whole is estimated."""


class Step(NamedTuple):
    """One step.

    Attributes:
        title: What is done, for people.
        jobs: How an observed job's name begins, to its work; what no observer hears of has the name ``""``. Work is
            counted in rows that pass the model once.
    """

    title: str
    jobs: Mapping[str, float]

    @property
    def work(self) -> float:
        """All of it."""
        return sum(self.jobs.values())

    def work_of(self, job: str) -> float:
        """What one observed job is of it; 0 of a job that is not known."""
        return next((work for name, work in self.jobs.items() if name and job.startswith(name)), 0.0)


class Steps:
    """An observer that says which step of how many begins and how long is left; what it hears it passes on.

    Args:
        inner: Gets notices and progress.
        steps: All steps in their order; each is begun or skipped.
    """

    def __init__(self, inner: Observer, steps: Sequence[Step]) -> None:
        self._inner = inner
        self._steps = steps
        self._number = 0
        self._left = sum(step.work for step in steps)
        self._done = 0.0
        self._open = 0.0
        self._begun: float | None = None
        self._job = "", 0, 0.0
        self._told = False

    def begin(self) -> None:
        """Begin the next step; the one before is over."""
        step = self._next()
        self._open = step.work
        left = f" (about {shown(self._seconds(self._done, self._left))} left)" if self._done else ""
        self._inner.notice(f"step {self._number} of {len(self._steps)}: {step.title}{left}")

    def skip(self) -> None:
        """Pass over the next step: it was done before, which says nothing about the pace."""
        self._left -= self._next().work

    def _next(self) -> Step:
        self._left -= self._open
        self._done += self._open
        self._open = 0.0
        self._number += 1
        return self._steps[self._number - 1]

    def _seconds(self, done: float, work: float) -> float:
        """How long work takes, at the pace at which some was done."""
        return (time.monotonic() - (self._begun or 0.0)) / done * work

    def notice(self, message: str) -> None:
        """Pass it on."""
        self._inner.notice(message)

    def start(self, what: str, total: int) -> None:
        """Pass it on; the clock begins with the first job, when its model is loaded."""
        if self._begun is None:
            self._begun = time.monotonic()
        self._job = what, total, self._steps[self._number - 1].work_of(what)
        self._inner.start(what, total)

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """Pass it on; once, when the first job shows the pace, say how long everything takes."""
        what, total, work = self._job
        if work and not self._told and done >= min(_FIRST, total):
            self._told = True
            if not self._done:  # else each step says it
                self._inner.finish()
                seconds = self._seconds(done / total * work, self._left)
                self._inner.notice(f"at the pace of these first steps all of it takes about {shown(seconds)}")
                self._inner.start(what, total)
        self._inner.advance(done, values)

    def finish(self) -> None:
        """Pass it on."""
        self._inner.finish()
