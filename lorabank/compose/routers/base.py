"""What every router promises.

An entry of the shelf `lorabank.core.shelves.ROUTERS` is a frozen dataclass of its settings, derived from
`RouterMethod`; `build` makes of the tasks' statistics what then tells them apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.ranking import Ranked
from lorabank.compose.routers.statistics import Floats, TaskStatistics


class Router(Protocol):
    """Tells tasks apart."""

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """[n, d] features to [n, T] scores; the higher the likelier."""
        ...

    def rank(self, features: Floats) -> Ranked:
        """[n, d] features to the best task of each, equal scores going to the earlier one, and its margin."""
        ...

    def route(self, features: Floats) -> NDArray[np.int64]:
        """[n, d] features to [n] indices of tasks: what `rank` says, without the margin."""
        ...


@dataclass(frozen=True)
class RouterMethod(ABC):
    """A way to tell tasks apart; its fields are its settings, ``paper`` says where it was published."""

    paper: ClassVar[str | None] = None

    @abstractmethod
    def build(self, statistics: Sequence[TaskStatistics]) -> Router:
        """The router over some tasks.

        Args:
            statistics: Of each task, in the order of the sequence; may be read whenever one is looked at.
        """

    def refitted(self, clusters: int, again: Callable[[int], TaskStatistics]) -> TaskStatistics | None:
        """What is needed of a task in place of what was kept when it was added; by default None, which is that.

        Args:
            clusters: Centroids that the kept statistics were asked to have.
            again: Finds so many centroids, on the samples that the bank keeps.
        """
        return None

    def identity(self) -> Any:
        """A JSON value of the settings that change a route; None where no setting does."""
        return None
