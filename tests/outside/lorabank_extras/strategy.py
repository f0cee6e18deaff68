"""Strategies: one that is settings alone, and one with a step and a setting of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorabank.core.records import AdapterRecord
from lorabank.core.settings import setting
from lorabank.training.strategies.base import Strategy

APART = Strategy("apart", "off", about="Every task alone.")


@dataclass(frozen=True)
class Windowed(Strategy):
    """A new adapter beside the newest of the earlier ones."""

    window: int = setting(2, "How many earlier adapters are active.", ge=1)

    def context(self, earlier: Sequence[AdapterRecord]) -> tuple[str, ...]:
        """The last adapters of those that `olora` would have."""
        return super().context(earlier)[-self.window :]


WINDOWED = Windowed("windowed", "active", "orthogonal", answers="own", about="Beside the newest adapters.")
