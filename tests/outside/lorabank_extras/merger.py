"""A merger: every adapter with one weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorabank.compose.mergers.base import Merger, Sources
from lorabank.core.settings import setting


@dataclass(frozen=True)
class Shares(Merger):
    """The sum of all adapters, times one weight."""

    share: float = setting(1.0, "The weight.", gt=0)

    def merge(self, sources: Sources) -> Mapping[str, float]:
        """The weight of each task."""
        return dict.fromkeys(sources.tasks, self.share)
