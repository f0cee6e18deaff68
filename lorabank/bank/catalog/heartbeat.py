"""The sign of life of a change under way, for those who cannot ask its process: other hosts, other containers.

A thread writes the time into the reservation once a minute. It never fails the change: a beat that does not succeed
(the database is locked by a commit, the disk is full) is left out, and the next one follows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lorabank.bank.catalog.base import Catalog
from lorabank.bank.catalog.times import now

INTERVAL = 60.0
"""Seconds between two beats; ``locks.LEASE`` allows for nine that fail."""

_PATIENCE = 1.0
"""Seconds that a beat waits for a writer."""

# No process is forked in the middle of a beat: the child would have its locks without the thread that ends them.
_beating = threading.Lock()
os.register_at_fork(before=_beating.acquire, after_in_parent=_beating.release, after_in_child=_beating.release)


class Heartbeat:
    """Beats from ``start`` to ``stop``, for as long as the reservation is the holder's.

    Args:
        catalog: The bank's rows.
        mine: The columns by which the reservation is known for as long as this process holds it.
    """

    def __init__(self, catalog: Catalog, mine: Mapping[str, Any]) -> None:
        self._catalog = catalog
        self._mine = dict(mine)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lorabank heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; a process that may not have another thread works without."""
        with suppress(RuntimeError):
            self._thread.start()

    def stop(self) -> None:
        """End, after a beat that is under way."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            with suppress(Exception):
                self.beat()

    def beat(self) -> None:
        """Say once that the process lives; nothing is changed when another one holds the reservation."""
        with _beating, self._catalog.write(patience=_PATIENCE) as transaction:
            transaction.update("operations", self._mine, seen_at=now())
