"""The queue of questions, and the one thread that owns the model.

The thread takes whatever waits, up to a batch, so a lone text starts at once and texts that come while the model works
share the next pass; while free text is written, they join it at its next token. Every `POLL` seconds, and when it is
asked for a name that it does not know, it looks whether another process has changed the bank. If so, what runs ends
first; then the new state is loaded over the same base weights while the queue grows, and answers the next batch. If it
cannot be loaded, the earlier state answers, and loading is tried again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import DataError
from lorabank.models.answering.replies import GenerationRequest
from lorabank.serving.backends.base import Answers, Backend
from lorabank.serving.catalogue import names_of
from lorabank.serving.config import ServeConfig
from lorabank.serving.errors import (
    CallError,
    Report,
    call_error,
    not_loaded,
    not_serving,
    queue_full,
    too_late,
    unknown_model,
)
from lorabank.serving.jobs import Job
from lorabank.serving.metrics import Meter
from lorabank.workflows.asking.mixed import MixedAnswers
from lorabank.workflows.asking.questions import Answered, Question, Who
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank

POLL = 0.5
"""Seconds between two looks at the bank."""

_LATEST_RETRY = 30.0
"""Maximum number of seconds until a state that could not be loaded is tried again."""


@dataclass(frozen=True)
class _State:
    """A state of the bank that is loaded; ``mixed`` is None where it has no task."""

    snapshot: Snapshot | None = None
    mixed: Answers | None = None
    names: frozenset[str] = frozenset()
    revision: int = 0


class Engine:
    """Answers jobs until it is stopped.

    Args:
        path: The bank's folder.
        config: Batches and limits.
        meter: Counts.
        notice: Gets what the operator should know.
        backend: What makes the tokens in the place of the bank's own model; None for that model.

    Attributes:
        backend: The same.
        failure: Why the thread ended, if nobody stopped it.
        failed: Called in the thread when it ends so.
        report: Logs errors for the operator.
    """

    def __init__(
        self,
        path: str | Path,
        config: ServeConfig,
        meter: Meter,
        notice: Callable[[str], None],
        backend: Backend | None = None,
    ) -> None:
        self.backend = backend
        self.failure: BaseException | None = None
        self.report = Report(path)
        self._path, self._config, self._meter, self._notice = path, config, meter, notice
        self._opened = OpenBank(path)
        self._settings = RuntimeSettings(
            device=config.device,
            dtype=config.dtype,
            batch_size=config.batch_size,
            max_resident=config.max_resident,
        )
        self._waiting: deque[Job] = deque()
        self._answering: list[Job] = []
        self._away: set[Job] = set()
        self._condition = threading.Condition()
        self._stopping = False
        self._loaded = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorabank-model", daemon=True)
        self._state = _State()
        self._looked = 0.0
        self._behind = self._runs_out = False
        self._peeked = 0.0
        self._unloaded: Snapshot | None = None
        self._retry_at = self._retry_in = 0.0
        self._batch_seconds = 0.1
        self.failed: Callable[[], None] = lambda: None

    # ------------------------------------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Start the thread, which loads the model."""
        if self.backend is not None:
            self.backend.start()
        self._thread.start()

    def refuse(self) -> None:
        """Refuse everything that waits or is being answered, and whatever comes; the thread ends by itself."""
        with self._condition:
            self._stopping = True
            left = [*self._answering, *self._waiting, *self._away]
            self._waiting.clear()
            self._condition.notify_all()
        for job in left:
            job.end(not_serving("stopping"))

    def stop(self, seconds: float | None = None) -> None:
        """Refuse everything, and wait until the thread has ended.

        Args:
            seconds: How long at most: a model that is being loaded cannot be interrupted.
        """
        self.refuse()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        if self.backend is not None:
            self.backend.stop()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._loaded.is_set() and not self._stopping and self.failure is None

    @property
    def revision(self) -> int:
        """Number of the bank's newest change in the state that answers."""
        return self._state.revision

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of new tokens: the setting, or half of what the base model takes."""
        mixed = self._state.mixed
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
            waiting = len(self._waiting) + len(self._away)
            if waiting + len(jobs) > self._config.max_queue:
                batches = waiting / self._config.batch_size
                raise queue_full(waiting, max(1, math.ceil(batches * self._batch_seconds)))
            self._waiting.extend(jobs)
            self._meter.waiting.set(len(self._waiting))
            self._condition.notify_all()

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._follow(self._opened)
            self._loaded.set()
            while not self._stopping:
                jobs = self._next()
                unknown = any(job.question.model not in self._state.names for job in jobs)
                if unknown or time.monotonic() - self._looked > POLL:
                    self._follow(self._opened)
                if jobs:
                    self._serve(jobs)
                self._answering = []
        except BaseException as error:  # the server ends with it
            self.failure = error
            self.failed()
        finally:
            self.refuse()
            self._opened.close()

    def _next(self) -> list[Job]:
        """The jobs of the next batch, oldest first; none if none came for a while."""
        with self._condition:
            if not self._waiting and not self._stopping:
                self._condition.wait(POLL)
            jobs = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._config.batch_size))]
            self._answering = jobs
            self._meter.waiting.set(len(self._waiting))
        return jobs

    def _follow(self, opened: OpenBank) -> None:
        """Load the bank's state if it has changed; where that fails, the state that is loaded stays."""
        self._looked = now = time.monotonic()
        try:
            snapshot = opened.refresh()
            if snapshot is self._state.snapshot or (snapshot is self._unloaded and now < self._retry_at):
                return
            if snapshot is not self._unloaded:
                self._unloaded, self._retry_in = snapshot, POLL
            self._load(opened, snapshot)
        except Exception as error:
            if not self._loaded.is_set():
                raise
            self._behind = True
            self.report("the bank's new state cannot be loaded, so the earlier one answers", error)
            self._retry_at = time.monotonic() + self._retry_in
            self._retry_in = min(2 * self._retry_in, _LATEST_RETRY)

    def _load(self, opened: OpenBank, snapshot: Snapshot) -> None:
        first = self._state.snapshot is None
        mixed: Answers | None = None
        if snapshot.tasks:
            if self.backend is None:
                mixed = MixedAnswers(opened, self._settings, self._notice)
            else:
                mixed = self.backend.answers(opened, self._settings, self._notice, self.report)
        self._state = _State(snapshot, mixed, frozenset(names_of(snapshot)), opened.revision)
        self._behind, self._unloaded = False, None
        self.report.forget()
        self._meter.revision.set(opened.revision)
        self._meter.loads.inc()
        if not first:
            self._notice(f"the bank has changed: revision {opened.revision} answers")

    def _serve(self, jobs: Sequence[Job]) -> None:
        """Answer the jobs that somebody still waits for."""
        begun = time.monotonic()
        live = [job for job in jobs if self._wanted(job)]
        if not live:
            return
        self._meter.batches.observe(len(live))
        self._runs_out, self._peeked = False, begun
        self._answer(live)
        seconds = (time.monotonic() - begun) * min(1.0, self._config.batch_size / len(live))  # others may have joined
        self._meter.batch_seconds.observe(seconds)
        self._batch_seconds += 0.2 * (seconds - self._batch_seconds)

    def _wanted(self, job: Job) -> bool:
        """Whether an answer is still wanted; a job that has waited for too long is refused."""
        if not job.ended and (job.gone or time.monotonic() - job.born > self._config.seconds):
            job.end(too_late(self._config.seconds))
        return not job.ended

    def _answer(self, jobs: list[Job], *, joined: bool = True) -> None:
        """Answer a batch; if it fails, each text by itself, so that only the one that is the reason fails.

        Args:
            jobs: The batch; jobs that join it are appended.
            joined: Whether others may join it.
        """
        try:
            self._ask([job for job in jobs if job.routing])
            self._ask([job for job in jobs if not job.routing], jobs if joined else None)
            return
        except Exception as error:
            left = [job for job in jobs if not job.ended]
            if len(left) == 1:
                self._fail(left[0], error)
        for job in left:  # behind the handler, which keeps what the failed pass had in memory
            if self._wanted(job):
                self._answer([job], joined=False)

    def _joining(self, room: int) -> list[Job]:
        """Jobs that came while a batch runs; none once it must run out, for a changed bank or an unknown name."""
        now = time.monotonic()
        if now - self._peeked > POLL:
            self._peeked, self._runs_out = now, self._runs_out or self._changed()
        jobs: list[Job] = []
        with self._condition:
            while self._waiting and len(jobs) < room and not (self._stopping or self._runs_out):
                if self._waiting[0].question.model not in self._state.names:
                    self._runs_out = True
                else:
                    jobs.append(self._waiting.popleft())
            self._answering += jobs
            self._meter.waiting.set(len(self._waiting))
        return [job for job in jobs if self._wanted(job)]

    def _changed(self) -> bool:
        """Whether the bank is another one than was read last, or is to be loaded again, or cannot be looked at."""
        try:
            return self._opened.changed or (self._behind and time.monotonic() >= self._retry_at)
        except Exception:  # `_follow` says why
            return True

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job with an error, which is reported unless its text is the reason."""
        if not isinstance(error, CallError | DataError):
            self.report(f"a text to {job.question.model!r} was not answered", error)
        job.end(call_error(error))

    def _ask(self, jobs: Sequence[Job], every: list[Job] | None = None) -> None:
        """Ask jobs that are all for answers, or none; ``every`` gets those that join them, where it is given."""
        if not jobs:
            return
        mixed, known = self._state.mixed, []
        for job in jobs:
            if job.question.model in self._state.names:
                known.append(job)
            else:  # it was removed since, or it belongs to a state that cannot be loaded
                name = job.question.model
                job.end(not_loaded(name) if self._behind else unknown_model(name, self._state.names))
        if mixed is None or not known:
            return

        def begin(i: int, who: Who) -> bool:
            job = known[i]
            try:
                if job.check is not None:
                    job.check(who)
            except CallError as error:
                job.end(error)
            if not job.ended:
                job.tell(who)
            else:
                self._away.discard(job)
            return not job.ended

        def deliver(i: int, event: Who | Answered | Exception) -> None:
            self._away.discard(known[i])
            if isinstance(event, Exception):
                self._fail(known[i], event)
                return
            if isinstance(event, Answered) and not known[i].ended:
                self._meter.answered(known[i].question.model, event)
            known[i].end(event)

        def more(room: int) -> list[Question]:
            new = self._joining(room)
            assert every is not None
            every.extend(new)
            self._ask([job for job in new if job.routing])
            answered = [job for job in new if not job.routing]
            known.extend(answered)
            return [self._heard(job) for job in answered]

        questions = [self._heard(job) for job in known]
        if known[0].routing:
            mixed.route(questions, deliver)
            return
        if self.backend is not None:
            self._away.update(known)
        try:
            mixed.answer(questions, begin, deliver, None if every is None else more)
        except BaseException:
            self._away.difference_update(known)
            raise

    def _heard(self, job: Job) -> Question:
        """The question, whose free text is passed on as it comes and ends when nobody waits for it."""
        last, job.again = job.born + self._config.seconds, ""

        def over() -> bool:
            return job.gone or self._stopping or time.monotonic() > last

        hear, sampling = job.hear if job.pieces else None, job.question.generation.sampling
        return replace(job.question, generation=GenerationRequest(sampling, hear=hear, over=over))
