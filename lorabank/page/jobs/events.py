"""A training as a stream of server-sent events, and its progress as a part of a page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from markupsafe import Markup

from lorabank.bank.progress import Follower, Progress, steps_of
from lorabank.components.charts import Axes, Line, line_chart
from lorabank.page.jobs.watching import Training
from lorabank.page.rendering import templates

_LOOK = 0.5
"""Seconds between two looks at the file."""
_SILENCE = 15.0
"""Seconds after which a comment is sent, so that who waits knows that the connection is there."""


async def events(look: Callable[[], Training | None], closing: Callable[[], bool]) -> AsyncIterator[str]:
    """Events ``progress`` with a part of the page, until the training's state is another: then ``state``.

    Args:
        look: The training now.
        closing: Whether the server stops.
    """
    first = await asyncio.to_thread(look)
    lines: list[Progress] = []
    follower: Follower | None = None
    sent = time.monotonic()
    try:
        while not closing():
            now = await asyncio.to_thread(look)
            if follower is None and now is not None and now.progress is not None:
                follower = Follower(now.progress)
            if follower is not None and (new := follower.new()):
                lines += new
                sent = time.monotonic()
                yield _event("progress", progress(lines))
            if first is None or now is None or now.state != first.state or not now.under_way:
                yield _event("state", "gone" if now is None else now.state)
                return
            if time.monotonic() - sent > _SILENCE:
                sent = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(_LOOK)
    finally:
        if follower is not None:
            follower.close()


def progress(lines: list[Progress], *, listed: bool = False) -> Markup:
    """How far a training is, as a part of a page; nothing before its first line.

    Args:
        lines: Its lines so far.
        listed: Whether the chart has its table, which each further line would close again.
    """
    if not lines:
        return Markup("")
    steps = steps_of(lines)
    last = lines[-1]
    step = next((line for line in reversed(lines) if line.step is not None), None)
    shown = (
        templates()
        .get_template("jobs_progress.j2")
        .render(last=last, step=step, measured=steps[-1] if steps else None, chart=_chart(steps, listed=listed))
    )
    return Markup(shown)


def _chart(steps: list[Progress], *, listed: bool) -> Markup | None:
    if len(steps) < 2:
        return None
    places = [float(one.step or 0) for one in steps]
    line = Line("task loss", places, [float("nan") if one.loss is None else one.loss for one in steps])
    return line_chart([line], Axes("step", "loss"), caption="Task loss by optimizer step", listed=listed)


def _event(name: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"event: {name}\n{lines}\n"
