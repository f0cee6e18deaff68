"""What the bank offers, as other processes leave it; read beside the thread that owns the model."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import LorabankError
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import COMPOSERS


class Catalogue:
    """The names that can be asked. It may be used from several threads.

    Args:
        path: The bank's folder.

    Raises:
        LorabankError: As `Bank.open` and `Bank.snapshot`.
    """

    def __init__(self, path: str | Path) -> None:
        self._bank = Bank.open(path)
        self._lock = threading.Lock()
        self._change = self._bank.last_change()
        self._snapshot = self._bank.snapshot()

    def look(self) -> Snapshot:
        """The bank's state now."""
        with self._lock:
            change = self._bank.last_change()
            if change != self._change:
                self._snapshot, self._change = self._bank.snapshot(), change
            return self._snapshot

    @property
    def revision(self) -> int:
        """Number of the newest change that was seen."""
        return int(self._change[0]) if self._change else 0

    def has(self, name: str) -> bool:
        """Whether there is a task or composition of this name; the bank is looked at again where none is known."""
        return name in names_of(self._snapshot) or name in names_of(self.look())

    def models(self) -> list[dict[str, Any]]:
        """Tasks and compositions, as OpenAI lists models, and what is known of each."""
        snapshot = self.look()
        tasks = [
            _model(task.name, task.created_at, snapshot)
            | {"root": task.adapter, "kind": "task", "labels": list(task.labels), "servable": True}
            for task in snapshot.tasks
        ]
        compositions = [
            _model(made.name, made.created_at, snapshot)
            | {"root": None, "kind": "composition", "mode": made.mode, "members": list(made.members)}
            | {"labels": _labels(snapshot, made.members), "servable": _known(made.mode)}
            for made in snapshot.compositions
        ]
        return [*tasks, *compositions]

    def bank(self) -> dict[str, Any]:
        """The bank for readers: nothing about files of the machine."""
        snapshot = self.look()
        base = snapshot.base
        return {
            "id": snapshot.id,
            "revision": self.revision,
            "base": {
                "name": _name(base),
                "task_type": base.task_type,
                "fingerprint": base.fingerprint,
                "parameters": base.parameters,
            },
            "tasks": [
                {
                    "name": task.name,
                    "position": task.position,
                    "labels": list(task.labels),
                    "adapter": task.adapter,
                    "strategy": snapshot.adapter_of(task.name).strategy,
                    "r": snapshot.adapter_of(task.name).r,
                    "created_at": task.created_at,
                }
                for task in snapshot.tasks
            ],
            "compositions": [
                {"name": made.name, "mode": made.mode, "members": list(made.members), "created_at": made.created_at}
                for made in snapshot.compositions
            ],
        }


def names_of(snapshot: Snapshot) -> set[str]:
    """The names that can be asked in a state of the bank."""
    return {task.name for task in snapshot.tasks} | {made.name for made in snapshot.compositions}


def _model(name: str, created_at: str, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _seconds(created_at),
        "owned_by": "lorabank",
        "parent": _name(snapshot.base),
    }


def _name(base: BaseModelRecord) -> str:
    """A hub id; of a folder or file of this machine only the last part."""
    return base.name if base.source == "hub" else Path(base.name).name


def _seconds(moment: str) -> int:
    try:
        return int(datetime.fromisoformat(moment).timestamp())
    except (OverflowError, ValueError):
        return 0


def _labels(snapshot: Snapshot, members: tuple[str, ...]) -> list[str]:
    """The labels of all members, each once."""
    return list(dict.fromkeys(label for name in members for label in snapshot.task(name).labels))


def _known(mode: str) -> bool:
    """Whether the mode's package is installed."""
    try:
        COMPOSERS.load(mode)
    except LorabankError:
        return False
    return True
