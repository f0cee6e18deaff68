"""What every merger promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack

Merge = Mapping[str, float] | LoraFactors | DenseDelta
"""The result: a weight for each task, one adapter, or delta weights of full rank."""


class Sources:
    """What is merged.

    Args:
        tasks: The tasks, in sequence order.
        read: Gives their adapters stacked, in that order.
        weight: Module name to the untouched base's weight ``[d_out, d_in]``.
    """

    def __init__(
        self, tasks: Sequence[str], read: Callable[[], AdapterStack], weight: Callable[[str], Tensor]
    ) -> None:
        self.tasks = tuple(tasks)
        self._weight = weight
        self._read = read

    def weight(self, module: str) -> Tensor:
        """The untouched base's weight ``[d_out, d_in]``, float32."""
        return self._weight(module)

    @cached_property
    def stack(self) -> AdapterStack:
        """The adapters, read when a merger asks for them."""
        return self._read()


@dataclass(frozen=True)
class Merger(ABC):
    """A way to merge; its fields are its settings, ``paper`` says where it was published."""

    paper: ClassVar[str | None] = None

    def prepared(self, tasks: Sequence[str]) -> Merger:
        """The same for tasks of these names, where a setting speaks of them.

        Raises:
            ConfigError: It speaks of other ones.
        """
        return self

    def sum_of(self, tasks: Sequence[str]) -> Mapping[str, float] | None:
        """The weight of each task where the result is a sum that needs no adapter read; None otherwise."""
        return None

    @abstractmethod
    def merge(self, sources: Sources) -> Merge:
        """The result for some of the tasks it was prepared for. The same sources give the same result."""

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values, from which the merger is made again."""
        return asdict(self)
