"""Who may use a session: the process that opened it, one call at a time, until it is closed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorabank.core.errors import BusyError, ConfigError


class Turns:
    """The turns of one session.

    Args:
        path: The bank's folder.
        release: Called once all is over, when no call is under way.
    """

    def __init__(self, path: str | Path, release: Callable[[], None]) -> None:
        self._path = path
        self._release = release
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._ended = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The length of one call.

        Raises:
            ConfigError: The session is closed, or belongs to another process: what a fork inherits of it,
                threads and a GPU's memory, does not work there.
            BusyError: Another call is under way.
        """
        self._take()
        try:
            yield
        finally:
            if self._ended:  # by another thread, which left the models to this call
                self._release()
            self._lock.release()

    def end(self) -> None:
        """Give no more turns; a call that is under way ends first."""
        self._ended = True
        if self._lock.acquire(blocking=False):
            self._release()
            self._lock.release()

    def _take(self) -> None:
        again, unchanged = "lorabank.open(PATH) opens one", "nothing was changed"
        if self._ended:
            raise ConfigError(f"the session of {self._path} is closed", hint=again, unchanged=unchanged)
        if self._process != os.getpid():
            raise ConfigError(
                f"the session of {self._path} was opened in process {self._process}, this is process {os.getpid()}",
                hint=f"{again} in each process",
                unchanged=unchanged,
            )
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                f"the session of {self._path} is in the middle of another call, and handles one at a time",
                hint=f"{again} for each thread, or let the threads wait for each other",
                unchanged=unchanged,
            )
