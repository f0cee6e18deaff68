"""The queue of questions, and the one thread that owns the model.

The thread takes whatever waits, up to a batch, so a lone text starts at once and texts that come while the model works
share the next pass. Every `POLL` seconds, and when it is asked for a name that it does not know, it looks whether
another process has changed the bank. If so, the new state is loaded over the same base weights while the queue grows,
and answers the next batch.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import LorabankError
from lorabank.core.machine.exhaustion import exhausted
from lorabank.models.answering.replies import GenerationRequest
from lorabank.serving.catalogue import names_of
from lorabank.serving.config import ServeConfig
from lorabank.serving.errors import not_serving, queue_full, too_late
from lorabank.serving.metrics import Meter
from lorabank.workflows.asking.mixed import MixedAnswers
from lorabank.workflows.asking.questions import Answered, Question, Who
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank

POLL = 0.5
"""Seconds between two looks at the bank."""

_log = logging.getLogger(__name__)

Event = Who | str | Answered | Exception
"""What becomes of a question: what answers it, pieces of free text, and at the end the answer or an error."""


@dataclass(eq=False)
class Job:
    """One question of a call.

    Attributes:
        question: The question.
        tell: Called in the model's thread with each event; it must not wait.
        pieces: Whether pieces of free text are wanted.
        routing: Whether only what would answer is wanted: the event `Who` is then the last one.
        born: When it came, of the monotonic clock.
        ended: Whether the last event was told.
        gone: Whether nobody waits for it any longer.
    """

    question: Question
    tell: Callable[[Event], None]
    pieces: bool = False
    routing: bool = False
    born: float = field(default_factory=time.monotonic)
    ended: bool = False
    gone: bool = False
    heard: bool = False

    def end(self, event: Event) -> None:
        """Tell the last event; a second one is dropped."""
        if not self.ended:
            self.ended = True
            self.tell(event)

    def hear(self, piece: str) -> None:
        """Tell a piece of text."""
        self.heard = True
        self.tell(piece)


class Engine:
    """Answers jobs until it is stopped.

    Args:
        path: The bank's folder.
        config: Batches and limits.
        meter: Counts.
        notice: Gets what the operator should know.

    Attributes:
        failure: Why the thread ended, if nobody stopped it.
    """

    def __init__(self, path: str | Path, config: ServeConfig, meter: Meter, notice: Callable[[str], None]) -> None:
        self.failure: BaseException | None = None
        self._path, self._config, self._meter, self._notice = path, config, meter, notice
        self._settings = RuntimeSettings(
            device=config.device,
            dtype=config.dtype,
            batch_size=config.batch_size,
            max_resident=config.max_resident,
        )
        self._waiting: deque[Job] = deque()
        self._condition = threading.Condition()
        self._stopping = False
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorabank-model", daemon=True)
        self._snapshot: Snapshot | None = None
        self._mixed: MixedAnswers | None = None
        self._names: set[str] = set()
        self._looked = 0.0
        self._revision = 0
        self._batch_seconds = 0.1
        self.failed: Callable[[], None] = lambda: None

    # ------------------------------------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Start the thread, which loads the model."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; texts that still wait are refused, and free text ends where it is."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._loaded.is_set() and not self._stopping and self.failure is None

    @property
    def revision(self) -> int:
        """Number of the bank's newest change in the state that answers."""
        return self._revision

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of new tokens: the setting, or half of what the base model takes."""
        mixed = self._mixed
        limit = None if mixed is None else mixed.max_length
        return self._config.max_new_tokens if limit is None else max(1, min(self._config.max_new_tokens, limit // 2))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for their turn, all of them or none.

        Raises:
            CallError: The queue has no room, or the model is not loaded or is stopping.
        """
        with self._condition:
            if not self.ready:
                raise not_serving("stopping" if self._stopping else "loading the model")
            waiting = len(self._waiting)
            if waiting + len(jobs) > self._config.max_queue:
                batches = waiting / self._config.batch_size
                raise queue_full(waiting, max(1, math.ceil(batches * self._batch_seconds)))
            self._waiting.extend(jobs)
            self._meter.waiting.set(len(self._waiting))
            self._condition.notify_all()

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        opened = OpenBank(self._path)
        try:
            self._follow(opened)
            self._loaded.set()
            while not self._stopping:
                jobs = self._next()
                unknown = any(job.question.model not in self._names for job in jobs)
                if unknown or time.monotonic() - self._looked > POLL:
                    self._follow(opened)
                if jobs:
                    self._serve(jobs)
        except BaseException as error:  # the server ends with it
            self.failure = error
            self.failed()
        finally:
            with self._condition:
                self._stopping = True
                left = list(self._waiting)
                self._waiting.clear()
            for job in left:
                job.end(not_serving("stopping"))
            opened.close()

    def _next(self) -> list[Job]:
        """The jobs of the next batch, oldest first; none if none came for a while."""
        with self._condition:
            if not self._waiting and not self._stopping:
                self._condition.wait(POLL)
            jobs = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._config.batch_size))]
            self._meter.waiting.set(len(self._waiting))
        return jobs

    def _follow(self, opened: OpenBank) -> None:
        """Load the bank's state if it has changed; if that fails, the state that is loaded stays."""
        self._looked = time.monotonic()
        try:
            snapshot = opened.refresh()
            if snapshot is self._snapshot:
                return
            first, self._snapshot = self._snapshot is None, snapshot
            self._mixed = MixedAnswers(opened, self._settings, self._notice) if snapshot.tasks else None
            self._names = names_of(snapshot)
            self._revision = opened.revision
            self._meter.revision.set(self._revision)
            self._meter.loads.inc()
            if not first:
                self._notice(f"the bank has changed: revision {self._revision} answers")
        except LorabankError as error:
            if not self._loaded.is_set():
                raise
            self._notice(f"the bank's new state cannot be loaded, the earlier one answers: {error.message}")

    def _serve(self, jobs: Sequence[Job]) -> None:
        """Answer the jobs that somebody still waits for."""
        begun = time.monotonic()
        for job in jobs:
            if job.gone or begun - job.born > self._config.seconds:
                job.end(too_late(self._config.seconds))
        live = [job for job in jobs if not job.ended]
        if not live:
            return
        self._meter.batches.observe(len(live))
        self._answer(live)
        seconds = time.monotonic() - begun
        self._meter.batch_seconds.observe(seconds)
        self._batch_seconds += 0.2 * (seconds - self._batch_seconds)

    def _answer(self, jobs: Sequence[Job]) -> None:
        try:
            self._ask([job for job in jobs if job.routing])
            self._ask([job for job in jobs if not job.routing])
        except LorabankError as error:
            left = [job for job in jobs if not job.ended]
            for job in left:
                if len(left) == 1 or job.heard:
                    job.end(error)
            for job in left:  # one of them is the reason, which is the others' no longer
                if not job.ended:
                    self._answer([job])
        except Exception as error:
            _log.exception("a batch of %d texts failed", len(jobs))
            for job in jobs:
                job.end(exhausted(error) or error)

    def _ask(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        mixed = self._mixed
        if mixed is None:
            for job in jobs:
                job.end(not_serving("without a task to answer: its bank has none yet"))
            return

        def deliver(i: int, event: Who | Answered | LorabankError) -> None:
            if isinstance(event, Answered) and not jobs[i].ended:
                self._meter.answered(jobs[i].question.model, event)
            jobs[i].end(event)

        questions = [self._heard(job) for job in jobs]
        if jobs[0].routing:
            mixed.route(questions, deliver)
        else:
            mixed.answer(questions, lambda i, who: jobs[i].tell(who), deliver)

    def _heard(self, job: Job) -> Question:
        """The question, whose free text is told as it comes and ends when nobody waits for it."""
        last = job.born + self._config.seconds

        def over() -> bool:
            return job.gone or self._stopping or time.monotonic() > last

        hear, sampling = job.hear if job.pieces else None, job.question.generation.sampling
        return replace(job.question, generation=GenerationRequest(sampling, hear=hear, over=over))
