"""What the page shows of a bank, read again when the bank has changed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.evaluation.reporting.bank import MOST_CURVES
from lorabank.models.facts.curves import LearningCurve
from lorabank.workflows.publish import newest_curves, stored_reports, with_mistakes
from lorabank.workflows.results import MatrixReport


class Facts:
    """A bank for readers. It may be used from several threads.

    Args:
        path: The bank's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.bank = Bank.open(path)
        self._lock = threading.Lock()
        self._reports: tuple[Any, list[MatrixReport]] = (None, [])
        self._curves: tuple[Any, tuple[dict[str, LearningCurve], bool]] = (None, ({}, False))

    def snapshot(self) -> Snapshot:
        """The bank's state now."""
        return self.bank.snapshot()

    def reports(self) -> list[MatrixReport]:
        """What was measured, as trained first; nothing is computed for it, and no model is loaded."""
        with self._lock:
            state = self._measured()
            if state != self._reports[0]:
                snapshot = self.bank.snapshot()
                self._reports = state, with_mistakes(self.bank, snapshot, stored_reports(self.bank, snapshot))
            return self._reports[1]

    def curves(self) -> tuple[dict[str, LearningCurve], bool]:
        """Task to how it was trained, of the newest tasks, and whether there are others."""
        with self._lock:
            state = self.bank.last_change()
            if state != self._curves[0]:
                self._curves = state, newest_curves(self.bank, self.bank.snapshot(), MOST_CURVES)
            return self._curves[1]

    def _measured(self) -> tuple[Any, ...]:
        """Another value after every change and after every new score."""
        with self.bank.catalog.read() as view:
            newest = view.last("evaluations")
        return (*self.bank.last_change(), newest and newest["row_digest"])
