"""How long work tells its caller what it does; the library itself never prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


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
        """The work begun last is over, well or not."""


class SilentObserver:
    """Tells nobody."""

    def notice(self, message: str) -> None:
        """Ignore the message."""

    def start(self, what: str, total: int) -> None:
        """Ignore the start."""

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        """Ignore the progress."""

    def finish(self) -> None:
        """Ignore the end."""
