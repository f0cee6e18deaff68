"""Where a stream stands between two of its tasks: what the next adapter needs, and by what a stream is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Self

from lorabank.bank.snapshot import Snapshot
from lorabank.core.records import AdapterRecord
from lorabank.data.row_stream import Taken
from lorabank.training.strategies.online_lora import LossWindow

ROLE = "stream"
"""Of the object of an adapter that holds it."""


@dataclass(frozen=True)
class StreamState:
    """After a task.

    Attributes:
        taken: The rows so far.
        window: The last losses.
        hard: Text and label of the rows of the highest loss.
    """

    taken: Taken = field(default_factory=Taken)
    window: LossWindow = field(default_factory=LossWindow)
    hard: tuple[tuple[str, str], ...] = ()

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` wrote."""
        stored = json.loads(data)
        window = stored["window"] | {"losses": tuple(stored["window"]["losses"])}
        return cls(
            Taken(**stored["taken"]), LossWindow(**window), tuple((text, label) for text, label in stored["hard"])
        )


def newest_of_stream(snapshot: Snapshot) -> AdapterRecord | None:
    """The adapter of the newest task of a stream; None where no task is one."""
    adapters = (snapshot.adapter_of(task.name) for task in reversed(snapshot.tasks))
    return next((adapter for adapter in adapters if ROLE in adapter.objects), None)
