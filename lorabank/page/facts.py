"""What the page shows of a bank, read again when the bank has changed."""

from __future__ import annotations

import threading
from pathlib import Path

from lorabank.bank.bank import Bank


class Facts:
    """A bank for readers. It may be used from several threads.

    Args:
        path: The bank's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.bank = Bank.open(path)
        self._lock = threading.Lock()
