"""What every merger promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.settings import setting

Merge = Mapping[str, float] | LoraFactors | DenseDelta
"""The result: a weight for each task, one adapter, or delta weights of full rank."""


class Sources:
    """What is merged.

    Args:
        tasks: The tasks, in sequence order.
        read: Gives their adapters stacked, in that order.
        weight: Module name to the untouched base's weight ``[d_out, d_in]``.
        facts: Role to what the tasks recorded under it when they were learnt, in that order, read one by one.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        read: Callable[[], AdapterStack],
        weight: Callable[[str], Tensor],
        facts: Callable[[str], Iterator[bytes]] = lambda role: iter(()),
    ) -> None:
        self.tasks = tuple(tasks)
        self.facts = facts
        self._weight = weight
        self._read = read

    def weight(self, module: str) -> Tensor:
        """The untouched base's weight ``[d_out, d_in]``, float32."""
        return self._weight(module)

    @cached_property
    def stack(self) -> AdapterStack:
        """The adapters, read when a merger asks for them."""
        return self._read()


@dataclass(frozen=True, kw_only=True)
class Merger(ABC):
    """A way to merge; its fields are its settings, ``paper`` says where it was published.

    Attributes:
        needs: Roles of what each task must have recorded when it was learnt (`lorabank.models.facts`): the ones that
            `merge` reads by ``sources.facts(role)``.
    """

    paper: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ()

    max_rank: int | None = setting(
        None, "Cut the result to this rank by SVD; prints the error per module; default: it stays exact.", ge=1
    )

    def prepared(self, tasks: Sequence[str]) -> Merger:
        """The same for tasks of these names, where a setting speaks of them.

        Raises:
            ConfigError: It speaks of other ones.
        """
        return self

    def sum_of(self, tasks: Sequence[str]) -> Mapping[str, float] | None:
        """The weight of each task where the result is a sum that needs no adapter read; None otherwise."""
        return None

    def near(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """The weights of the sum that a result is compared with: its own, of any other merger those of the mean."""
        return self.sum_of(tasks) or dict.fromkeys(tasks, 1 / len(tasks))

    @abstractmethod
    def merge(self, sources: Sources) -> Merge:
        """The result for some of the tasks it was prepared for. The same sources give the same result."""

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values, from which the merger is made again."""
        return asdict(self)
