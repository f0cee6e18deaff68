"""Where work of several steps stands, and how long the rest takes at the pace of this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lorabank.core.observer import Observer
from lorabank.sequences.clock import shown

_FIRST = 8
"""Units of the first job after which the whole is estimated."""

_PARTS = 1000
"""Units in which the progress of the whole is reported."""


class Step(NamedTuple):
    """One step.

    Attributes:
        title: What is done, for people.
        jobs: How an observed job's name begins, to its work; what no observer hears of has the name ``""``. Work is
            counted in rows that pass the model once.
        done: Whether the step was done by an earlier run.
    """

    title: str
    jobs: Mapping[str, float]
    done: bool = False

    @property
    def work(self) -> float:
        """All of it; 0 where it was done before, which says nothing about the pace."""
        return 0.0 if self.done else sum(self.jobs.values())

    def work_of(self, job: str) -> float:
        """What one observed job is of it; 0 of a job that is not known."""
        return next((work for name, work in self.jobs.items() if name and job.startswith(name)), 0.0)


class Steps:
    """An observer of several steps that reports one progress: that of all of them.

    Args:
        inner: Gets notices, and progress in thousandths of the whole work.
        title: What all steps together are called.
        steps: All steps in their order; each that was not done before is begun, the others are passed over.
    """

    def __init__(self, inner: Observer, title: str, steps: Sequence[Step]) -> None:
        self._inner = inner
        self._title = title
        self._steps = steps
        self._number = 0
        self._whole = sum(step.work for step in steps)
        self._done = 0.0
        """Work of the steps that are over."""
        self._within = 0.0
        """Work of the jobs of this step that are over."""
        self._begun: float | None = None
        self._job = "", 1, 0.0
        self._told = False

    def begin(self) -> None:
        """Begin the next step that was not done before; the one before is over."""
        if self._number:
            self._done, self._within = self._done + self._steps[self._number - 1].work, 0.0
        self._number += 1
        while self._steps[self._number - 1].done:
            self._number += 1
        left = f" (about {self._left(self._done)} left)" if self._done else ""
        self._inner.notice(f"step {self._number} of {len(self._steps)}: {self._steps[self._number - 1].title}{left}")

    def close(self) -> None:
        """All steps are over, well or not."""
        if self._begun is not None:
            self._inner.finish()

    def _left(self, done: float) -> str:
        """How long the rest takes, at the pace at which some was done, in words."""
        return shown((time.monotonic() - (self._begun or 0.0)) / done * (self._whole - done))

    def notice(self, message: str) -> None:
        """Pass it on."""
        self._inner.notice(message)

    def start(self, what: str, total: int) -> None:
        """Begin a job of the step; the clock begins with the first job, when its model is loaded."""
        if self._begun is None:
            self._begun = time.monotonic()
            self._inner.start(self._title, _PARTS)
        self._job = what, max(total, 1), self._steps[self._number - 1].work_of(what)

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """Report how much of the whole is done; once, when the first job shows the pace, how long the whole takes."""
        _, total, work = self._job
        here = self._done + self._within + done / total * work
        if work and not self._told and done >= min(_FIRST, total):
            self._told = True
            if not self._done:  # else each step says it
                whole = (time.monotonic() - (self._begun or 0.0)) / here * self._whole
                self._inner.notice(f"at the pace of these first steps the whole takes about {shown(whole)}")
        self._inner.advance(int(here / self._whole * _PARTS), values)

    def finish(self) -> None:
        """End the job; the progress of the whole stays."""
        _, _, work = self._job
        self._within += work
        self._job = "", 1, 0.0
