"""The trainings of a bank that are under way or were interrupted, wherever they began, and those of the page."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from lorabank.bank.bank import Bank
from lorabank.bank.operations import RESUMABLE, holds_checkpoint
from lorabank.bank.progress import FILE, STOPPED, Progress, read_progress
from lorabank.core.commands import Command
from lorabank.core.records import OperationRecord
from lorabank.page.jobs.queue import Job, Jobs

State = Literal["waiting", "running", "interrupted", "done", "stopped", "failed"]

ENDED: tuple[State, ...] = ("interrupted", "done", "stopped", "failed")


class Training(NamedTuple):
    """One training.

    Attributes:
        name: The task.
        state: Where it is; ``"interrupted"`` can be resumed.
        command: What was run; None where another process started it.
        lines: Its progress so far.
        said: What it wrote, where the page started it.
        error: Its error; empty where it had none.
        progress: The file of its progress, which may not be there; None where there is nothing to follow.
    """

    name: str
    state: State
    command: Command | None
    lines: tuple[Progress, ...]
    said: str
    error: str
    progress: Path | None

    @property
    def under_way(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED

    @property
    def last(self) -> Progress | None:
        """Its last line."""
        return self.lines[-1] if self.lines else None


def trainings(bank: Bank, jobs: Jobs) -> list[Training]:
    """All of them: those in the bank's folder, then those that the page remembers."""
    kept = _operations(bank)
    asked = {job.name: job for job in jobs.all()}
    names = dict.fromkeys([*kept, *asked])
    return [found for name in names if (found := _training(bank, name, kept, asked)) is not None]


def training(bank: Bank, jobs: Jobs, name: str) -> Training | None:
    """The one of a task; None where nothing is known of it."""
    job = jobs.of(name)
    return _training(bank, name, _operations(bank), {} if job is None else {name: job})


def interrupt(bank: Bank, jobs: Jobs, name: str) -> bool:
    """Stop a training as Ctrl-C does, whoever started it on this machine; whether there was one."""
    if jobs.cancel(name):
        return True
    operation = _operations(bank).get(name)
    if operation is None or not operation.alive or not _is_training(operation):
        return False
    try:
        os.kill(operation.pid, signal.SIGINT)
    except OSError:
        return False
    return True


def _operations(bank: Bank) -> dict[str, OperationRecord]:
    return {one.name: one for one in bank.operations() if one.kind == RESUMABLE}


def _is_training(operation: OperationRecord) -> bool:
    """Whether the process is what the bank says: a bank of another user may name any process."""
    import psutil

    try:
        words = psutil.Process(operation.pid).cmdline()
    except psutil.Error:
        return False
    return operation.kind in words and operation.name in words


def _training(bank: Bank, name: str, kept: Mapping[str, OperationRecord], asked: Mapping[str, Job]) -> Training | None:
    operation, job = kept.get(name), asked.get(name)
    work = None if operation is None else bank.path / "work" / operation.id
    lines = () if work is None else tuple(read_progress(work))
    state: State
    if operation is not None and operation.alive:
        state = "running"
    elif job is not None and job.under_way:
        state = "waiting" if job.state == "waiting" else "running"
    elif work is not None and holds_checkpoint(work):
        state = "interrupted"
    elif job is not None:
        state = job.state
    else:
        return None
    error = "" if job is None else job.error()
    if state == "interrupted" and not error and lines and lines[-1].phase != STOPPED:
        error = lines[-1].error or "the process ended without a word: it was killed, or the machine stopped"
    return Training(
        name=name,
        state=state,
        command=None if job is None else job.command,
        lines=lines,
        said="" if job is None else job.said(),
        error=error,
        progress=None if work is None else work / FILE,
    )
