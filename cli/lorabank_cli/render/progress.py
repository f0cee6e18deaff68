"""The library's ``Observer`` on stderr: a bar on a terminal, a plain line now and then else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Self

import click

from lorabank.core.escaping import safe
from lorabank_cli.render.output import Output

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_LINES = 10
"""Plain lines of one job when stderr is a file or a pipe, beside its first step."""

_SECONDS = 30.0
"""The longest silence of a running job."""

_ERASE = "\r\x1b[K"
"""Empties the terminal's line."""


class ConsoleObserver:
    """Shows notices and progress with the loss and each penalty; silent with ``--quiet``.

    Args:
        output: The streams.
        lines: Plain lines of one job beside its first step; with 0 there is a line only after a long silence.
        lasting: Whether a notice stands above the bar, which stays; otherwise it ends the bar.
    """

    def __init__(self, output: Output, lines: int = _LINES, *, lasting: bool = False) -> None:
        self._output = output
        self._lines = lines
        self._lasting = lasting
        self._bar: ProgressBar[int] | None = None
        self._what = ""
        self._total = 0
        self._tenth = 0
        self._shown = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def notice(self, message: str) -> None:
        """One line for the user."""
        if self._bar is not None and self._lasting:
            click.echo(_ERASE, nl=False, err=True)  # the next progress draws the bar again, a line below
        else:
            self.finish()
        self._output.notice(message)

    def start(self, what: str, total: int) -> None:
        """Begin a job of ``total`` steps."""
        self.finish()
        self._what, self._total, self._tenth, self._shown = safe(what), total, 0, monotonic()
        if self._output.quiet:
            return
        if sys.stderr.isatty():
            self._bar = click.progressbar(
                length=total, label=self._what, file=sys.stderr, show_pos=True, item_show_func=_shown
            )
            self._bar.__enter__()
        elif self._lines:
            self._output.aside(f"{self._what}: 0/{total}")

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """Show that ``done`` steps of the job are behind us.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed and got lost.
        """
        if self._output.interrupted:
            raise KeyboardInterrupt
        line = "  ".join(f"{safe(name)} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            # The bar wants increments and any item; the item is the text to show.
            self._bar.current_item = line  # type: ignore[assignment]
            self._bar.update(done - self._bar.pos)
        elif not self._output.quiet and self._total:
            tenth, now = done * self._lines // self._total, monotonic()
            if tenth > self._tenth or (done == 1 and self._lines) or now - self._shown > _SECONDS:
                self._tenth, self._shown = tenth, now
                self._output.aside(f"{self._what}: {done}/{self._total}  {line}".rstrip())

    def finish(self) -> None:
        """End the job's bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _shown(item: object) -> str | None:
    return None if item is None else str(item)
