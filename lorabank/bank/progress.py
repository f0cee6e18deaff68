"""How far a training is, in a file that other processes follow: ``work/<operation>/progress.jsonl``.

Each line is a JSON object, written whole and flushed. Nothing depends on the file: where it cannot be written the
training continues without it, and a reader passes over a line that it does not understand. It lies beside the
checkpoints and goes with them; who has it open by then still reads its last lines.
"""

from __future__ import annotations

import json
import math
import os
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

from lorabank.bank.catalog.times import now
from lorabank.bank.objects.open_regular import open_plain
from lorabank.core.errors import DamagedError, LorabankError

FILE = "progress.jsonl"

LOADING, TRAINING, STORING, SCORING = "loading", "training", "storing", "scoring"
"""What an operation does, in this order."""
DONE, STOPPED, FAILED = "done", "stopped", "failed"
"""How it ended: with the task in the bank, by Ctrl-C, or by an error."""
PHASES = (LOADING, TRAINING, STORING, SCORING, DONE, STOPPED, FAILED)

_SECOND = 1.0
_SHARE = 1000
"""A line stands for at least a second and for a thousandth of the time before it, so the file stays short."""
_MOST = 16 << 20
"""Bytes that are read of a file."""


class Progress(NamedTuple):
    """One line of the file.

    Attributes:
        time: When it was written: UTC, ISO 8601.
        phase: One of `PHASES`.
        step: Optimizer steps done.
        of: Steps of the whole training.
        epoch: Passes over the rows so far.
        loss: Task loss of the step, a mean over its batches.
        penalties: Name to value of each penalty of the step, before its weight.
        held_out: What was measured last on held-out rows: ``step``, ``loss`` and ``accuracy``; empty before.
        learning_rate: Of the step.
        seconds_left: Estimated seconds to the last step, at the pace of this process.
        error: Why it failed or stopped, in a line.
    """

    time: str
    phase: str
    step: int | None = None
    of: int | None = None
    epoch: float | None = None
    loss: float | None = None
    penalties: Mapping[str, float] = MappingProxyType({})
    held_out: Mapping[str, float] = MappingProxyType({})
    learning_rate: float | None = None
    seconds_left: float | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing follows, unless the training is resumed."""
        return self.phase in (DONE, STOPPED, FAILED)

    def facts(self) -> dict[str, Any]:
        """As JSON has it; what is not known is left out."""
        known = ((name, value) for name, value in self._asdict().items() if value is not None)
        return {name: _plain(value) for name, value in known if not isinstance(value, Mapping) or value}

    @classmethod
    def parse(cls, line: bytes) -> Progress | None:
        """A line of the file; None where it is none: cut off, of another version, or not of lorabank."""
        try:
            facts = json.loads(line)
            if not isinstance(facts, dict) or facts.get("phase") not in PHASES:
                return None
            return cls(
                time=str(facts.get("time", "")),
                phase=facts["phase"],
                step=_count(facts.get("step")),
                of=_count(facts.get("of")),
                epoch=_number(facts.get("epoch")),
                loss=_number(facts.get("loss")),
                penalties=_numbers(facts.get("penalties")),
                held_out=_numbers(facts.get("held_out")),
                learning_rate=_number(facts.get("learning_rate")),
                seconds_left=_number(facts.get("seconds_left")),
                error=None if facts.get("error") is None else str(facts["error"]),
            )
        except (ValueError, RecursionError):
            return None


class ProgressFile:
    """Writes the file; a context manager, at whose end the last line says how it ended.

    Args:
        work: The folder of the operation; None writes nothing.
    """

    def __init__(self, work: Path | None = None) -> None:
        self._descriptor: int | None = None
        self._began: tuple[float, int] | None = None
        self._next = 0.0
        if work is not None:
            with suppress(OSError):
                self._descriptor = _open(work / FILE)

    def __enter__(self) -> Self:
        self.phase(LOADING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.phase(DONE)
        elif isinstance(error, KeyboardInterrupt):
            self.phase(STOPPED, "interrupted")
        else:
            self.phase(FAILED, _line(error))
        self._close()

    def phase(self, phase: str, error: str | None = None) -> None:
        """Write that another phase begins, or the last one."""
        self._write(Progress(now(), phase, error=error))

    def begin(self, step: int, of: int) -> None:
        """Write that the steps begin.

        Args:
            step: Steps that were done before, by a training that is resumed.
            of: Steps of the whole training.
        """
        self._began = time.monotonic(), step
        self._next = 0.0
        self._write(Progress(now(), TRAINING, step=step, of=of))

    @property
    def due(self) -> bool:
        """Whether the next step is to be written; to ask costs a look at the clock."""
        return self._descriptor is not None and time.monotonic() >= self._next

    def step(
        self,
        step: int,
        of: int,
        *,
        epoch: float | None,
        learning_rate: float | None,
        terms: Mapping[str, float],
        held_out: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Write a step.

        Args:
            step: Steps done.
            of: Steps of the whole training.
            epoch: As of `Progress`.
            learning_rate: As of `Progress`.
            terms: The task loss, called ``loss``, and each penalty.
            held_out: As of `Progress`.
        """
        moment = time.monotonic()
        began, first = self._began or (moment, step)
        self._next = moment + max(_SECOND, (moment - began) / _SHARE)
        left = (of - step) * (moment - began) / (step - first) if step > first else None
        penalties = {name: value for name, value in terms.items() if name != "loss"}
        loss = terms.get("loss")
        self._write(Progress(now(), TRAINING, step, of, epoch, loss, penalties, held_out, learning_rate, left))

    def _write(self, progress: Progress) -> None:
        if self._descriptor is None:
            return
        line = json.dumps(progress.facts()).encode() + b"\n"
        try:
            whole = os.write(self._descriptor, line) == len(line)
        except OSError:
            whole = False
        if not whole:  # a full disk: who follows the file sees no more of it
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Follower:
    """Reads a file that grows, from its beginning.

    Args:
        path: The file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._rest = b""
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def new(self) -> list[Progress]:
        """The lines that were finished since the last call; none where there is no such file."""
        if self._file is None:
            try:
                self._file = open_plain(self._path)
            except (OSError, DamagedError):
                return []
        found = self._file.read(max(0, _MOST - self._read)) or b""
        self._read += len(found)
        *lines, self._rest = (self._rest + found).split(b"\n")
        return [one for one in map(Progress.parse, lines) if one is not None]


def read_progress(work: Path) -> list[Progress]:
    """The lines of an operation's file, oldest first; none where there is no file."""
    with Follower(work / FILE) as follower:
        return follower.new()


def steps_of(lines: Iterable[Progress]) -> list[Progress]:
    """The steps with a loss, each once: a training that was resumed goes back to its last checkpoint."""
    found: list[Progress] = []
    for line in lines:
        if line.phase != TRAINING or line.step is None:
            continue
        while found and (found[-1].step or 0) >= line.step + (line.loss is None):
            found.pop()
        if line.loss is not None:
            found.append(line)
    return found


def _open(path: Path) -> int:
    """A descriptor that appends; a line that a killed process left unfinished is ended."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
        os.write(descriptor, b"\n")
    return descriptor


def _line(error: BaseException) -> str:
    """What went wrong, in a line."""
    said = error.message if isinstance(error, LorabankError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())


def _plain(value: Any) -> Any:
    """A value that JSON can hold: what is not finite is not known."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1000
    return float(value) if known else None


def _numbers(value: Any) -> dict[str, float]:
    found = value.items() if isinstance(value, dict) else ()
    return {name: number for name, one in found if (number := _number(one)) is not None}
