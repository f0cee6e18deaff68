"""Trainings that the page starts: child processes with the command line's own command, one at a time.

A bank has one writer, so what is asked for waits until the bank is free, whoever works on it. A training has a
session of its own: it survives the server, and Ctrl-C of the server's terminal does not reach it. What it writes goes
into a file, so it never waits for a server that is gone.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorabank.bank.bank import Bank
from lorabank.core.commands import Command
from lorabank.core.errors import BusyError, LorabankError
from lorabank.serving.config import TOKEN

State = Literal["waiting", "running", "done", "stopped", "failed"]

_LOOK = 0.5
"""Seconds between two looks at a bank that another process works on."""
_KEPT = 100
"""Trainings that are remembered, and files with what trainings wrote that are kept for the operator."""
_SAID = 64 << 10
"""Bytes of what a training wrote that are shown."""
_INTERRUPTED = 130


@dataclass
class Job:
    """A training that was asked for.

    Attributes:
        name: The task.
        command: What is run, without the bank.
        log: The file with what it writes.
        state: Where it is.
        cancelled: Whether it is to stop.
        refused: Why it could not be started.
        process: The process, once it was started.
    """

    name: str
    command: Command
    log: Path
    state: State = "waiting"
    cancelled: bool = False
    refused: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def under_way(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    def said(self) -> str:
        """What it wrote, or the end of that."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _SAID))
                return file.read(_SAID).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def error(self) -> str:
        """Its error with what it proposes; empty where it wrote none."""
        if self.refused:
            return self.refused
        _, found, rest = f"\n{self.said()}".rpartition("\nerror: ")
        return rest if found else ""


class Jobs:
    """The trainings of a bank that the page starts. It may be used from several threads.

    Args:
        bank: The bank's folder.
        program: The words that start the command line.
        folder: Where files with what they write are made.
    """

    def __init__(self, bank: Path, program: Sequence[str], folder: Path) -> None:
        self._bank, self._program, self._folder = bank, tuple(program), folder
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._worker: threading.Thread | None = None

    def add(self, name: str, command: Command) -> Job | None:
        """Start a training as soon as the bank is free.

        Args:
            name: The task.
            command: What to run.

        Returns:
            The training; None where one of this name waits or runs.
        """
        with self._lock:
            before = self._jobs.get(name)
            if before is not None and before.under_way:
                return None
            self._jobs.pop(name, None)
            job = self._jobs[name] = Job(name, command, self._folder / f"{secrets.token_hex(8)}.log")
            for old in [one for one in self._jobs.values() if not one.under_way][:-_KEPT]:
                del self._jobs[old.name]
            if before is not None:
                before.log.unlink(missing_ok=True)
            self._forget()
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="trainings", daemon=True)
                self._worker.start()
            return job

    def all(self) -> list[Job]:
        """Those that are remembered, in the order in which they were asked for."""
        with self._lock:
            return list(self._jobs.values())

    def of(self, name: str) -> Job | None:
        """The last one of a task."""
        with self._lock:
            return self._jobs.get(name)

    def cancel(self, name: str) -> bool:
        """Stop a training as Ctrl-C does, or take it out of the queue; whether there was one."""
        with self._lock:
            job = self._jobs.get(name)
            if job is None or not job.under_way:
                return False
            job.cancelled = True
            if job.process is None:
                job.state = "stopped"
            else:
                job.process.send_signal(signal.SIGINT)
            return True

    def _forget(self) -> None:
        """Delete the oldest files with what trainings wrote, except those of trainings that are remembered.

        Earlier servers left theirs. Trainings run one at a time, so one that survived its server has a newer file.
        """
        own = {job.log for job in self._jobs.values()}
        found = [path for path in self._folder.glob("*.log") if path not in own]
        for path in sorted(found, key=_written)[: max(0, len(found) + len(own) - _KEPT)]:
            with suppress(OSError):  # the training that cannot be started says it
                path.unlink()

    def _work(self) -> None:
        """Run what waits, until nothing does."""
        while (job := self._next()) is not None:
            if not self._free():
                time.sleep(_LOOK)
            elif (process := self._start(job)) is not None:
                self._end(job, process.wait())

    def _next(self) -> Job | None:
        with self._lock:
            found = next((job for job in self._jobs.values() if job.state == "waiting"), None)
            if found is None:
                self._worker = None
            return found

    def _free(self) -> bool:
        """Whether no other process works on the bank."""
        try:
            return not any(operation.alive for operation in Bank.open(self._bank).operations())
        except LorabankError:  # the training says it better
            return True

    def _start(self, job: Job) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if job.cancelled:
                return None
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
                with open(descriptor, "wb") as log:
                    job.process = subprocess.Popen(
                        [*self._program, "-b", str(self._bank), *job.command],  # whatever words a form brought
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={name: value for name, value in os.environ.items() if name != TOKEN},
                        start_new_session=True,
                    )
            except OSError as error:
                job.state, job.refused = "failed", f"the training cannot be started: {error}"
                return None
            job.state = "running"
            return job.process

    def _end(self, job: Job, code: int) -> None:
        with self._lock:
            job.process = None
            if code == BusyError.exit_code and not job.cancelled:  # another process was faster
                job.state = "waiting"
            elif code in (_INTERRUPTED, -signal.SIGINT):
                job.state = "stopped"
            else:
                job.state = "failed" if code else "done"


def _written(path: Path) -> float:
    """When a file was last written; of one that is gone the beginning of time."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0
