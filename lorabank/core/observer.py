"""How long work tells its caller what it does; the library itself never prints."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from lorabank.core.escaping import safe


@runtime_checkable
class Observer(Protocol):
    """Receives notices and progress; ``done`` is absolute, ``values`` are the latest losses by name."""

    def notice(self, message: str) -> None:
        """One line for the user."""

    def start(self, what: str, total: int) -> None:
        """Work of ``total`` units begins."""

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """``done`` units are finished."""

    def finish(self) -> None:
        """The work that began last has ended, successfully or not."""


@runtime_checkable
class Listener(Protocol):
    """Is called with each of several results when it is there."""

    def __call__(self, result: Any, /) -> object:
        """Take one."""


class SilentObserver:
    """Ignores every event."""

    def notice(self, message: str) -> None:
        """Ignore the message."""

    def start(self, what: str, total: int) -> None:
        """Ignore the start."""

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """Ignore the progress."""

    def finish(self) -> None:
        """Ignore the end."""


class NotebookObserver(threading.local):
    """An ``Observer`` that shows bars of tqdm, and notices as lines on standard error; silent outside of IPython.

    Each thread has a bar of its own, so one observer serves every session of a process.
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def notice(self, message: str) -> None:
        """One line for the user, above the bar."""
        if in_ipython():
            from tqdm.auto import tqdm

            tqdm.write(safe(message), file=sys.stderr)

    def start(self, what: str, total: int) -> None:
        """Begin a bar of ``total`` steps."""
        self.finish()
        if in_ipython():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc=safe(what))

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """Move the bar to ``done``, with the values after it."""
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(f"{safe(n)} {v:.4g}" for n, v in values.items()), refresh=False)
            self._bar.update(done - self._bar.n)

    def finish(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def in_ipython() -> bool:
    """Whether this process is a notebook's kernel or an IPython shell; IPython itself is not imported for it."""
    module = sys.modules.get("IPython")
    return module is not None and module.get_ipython() is not None


BARS = NotebookObserver()
"""The observer of every call that is given none."""
