"""One call's questions, from the event loop to the model's thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Self, TypeVar

from fastapi import Request

from lorabank.serving.engine import Engine
from lorabank.serving.errors import call_error
from lorabank.serving.jobs import Check, Event, Job
from lorabank.workflows.asking.questions import Answered, Question, Who

T = TypeVar("T", Answered, Who)


class CallerGone(Exception):
    """Nobody waits for the answer any longer."""


class Call:
    """The questions of one call; used as a context, at whose end nothing of it is computed any longer.

    Args:
        engine: Answers them.
        questions: At least one.
        pieces: Whether pieces of free text are wanted; of a single question.
        routing: Whether only what would answer is wanted.
        check: Raises a `CallError` for what may not answer; it is called in the model's thread before the answer is
            computed.

    Raises:
        CallError: When it is entered: the queue has no room, or the model is not there.
    """

    def __init__(
        self,
        engine: Engine,
        questions: Sequence[Question],
        *,
        pieces: bool = False,
        routing: bool = False,
        check: Check | None = None,
    ) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._jobs = [
            Job(question, partial(self._tell, i), pieces=pieces, routing=routing, check=check)
            for i, question in enumerate(questions)
        ]

    def __enter__(self) -> Self:
        self._engine.submit(self._jobs)
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs:
            job.gone = True

    def _tell(self, i: int, event: Event) -> None:
        """Pass an event on from the model's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, (i, event))

    async def answers(self, request: Request) -> list[Answered]:
        """The answers, in order.

        Raises:
            CallError: The first question that has none says why.
            CallerGone: The caller has hung up.
        """
        return await self._all(Answered, request)

    async def routes(self, request: Request) -> list[Who]:
        """What would answer each question; errors as of `answers`."""
        return await self._all(Who, request)

    async def begun(self, request: Request) -> Who:
        """What answers the first question, before it does; errors as of `answers`."""
        gone = asyncio.create_task(_hung_up(request))
        try:
            while True:
                _, event = await self._next(gone)
                if isinstance(event, Who):
                    return event
        finally:
            gone.cancel()

    async def pieces(self) -> AsyncIterator[str | Answered]:
        """The pieces of the first question's answer, and at the end the answer.

        Raises:
            CallError: It has none, or no more of it.
        """
        while True:
            _, event = await self._events.get()
            if isinstance(event, Exception):
                raise call_error(event) from event
            if isinstance(event, str | Answered):
                yield event
            if isinstance(event, Answered):
                return

    async def _all(self, kind: type[T], request: Request) -> list[T]:
        """The event of a kind of each question."""
        found: dict[int, T] = {}
        gone = asyncio.create_task(_hung_up(request))
        try:
            while len(found) < len(self._jobs):
                i, event = await self._next(gone)
                if isinstance(event, kind):
                    found[i] = event
        finally:
            gone.cancel()
        return [found[i] for i in range(len(self._jobs))]

    async def _next(self, gone: asyncio.Task[None]) -> tuple[int, Event]:
        """The next event, unless the caller hangs up before it."""
        coming = asyncio.create_task(self._events.get())
        try:
            await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise CallerGone
        finally:
            coming.cancel()
        i, event = coming.result()
        if isinstance(event, Exception):
            raise call_error(event) from event
        return i, event


async def _hung_up(request: Request) -> None:
    """Wait until the caller is gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
