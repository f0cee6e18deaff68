"""What every merger promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors, add_rows
from lorabank.algebra.stack import AdapterStack
from lorabank.core.settings import setting
from lorabank.core.states import Over

if TYPE_CHECKING:
    from lorabank.compose.mergers.kept import KeptRows


@dataclass(frozen=True)
class ByModule:
    """A weight for each task on each module: module name to ``[T]``, in the order of the tasks."""

    weights: Mapping[str, Tensor]

    def mean(self, tasks: Sequence[str]) -> dict[str, float]:
        """Each task's mean over the modules."""
        mean = torch.stack([own.double() for own in self.weights.values()]).mean(0)
        return dict(zip(tasks, mean.tolist(), strict=True))


Merge = Mapping[str, float] | ByModule | LoraFactors | DenseDelta
"""The result: a weight for each task, one for each module too, one adapter, or delta weights of full rank."""


@dataclass(frozen=True)
class Told:
    """A result, and what the user should know of how it was found: JSON values, shown and stored."""

    merge: Merge
    report: Mapping[str, Any]


class Sources:
    """What is merged.

    Args:
        tasks: The tasks, in sequence order.
        adapters: The name of what each task brings: the digest of its adapter, or another one of a sum of adapters.
        read: Gives what they bring as stacked adapters, each once.
        weight: Module name to the untouched base's weight ``[d_out, d_in]``.
        facts: Role to what the tasks recorded under it when they were learnt, in that order, read one by one.
        ask: Gives the tasks' kept rows and the model, for a merger that is fitted.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        adapters: Sequence[str],
        read: Callable[[], AdapterStack],
        weight: Callable[[str], Tensor],
        facts: Callable[[str], Iterator[bytes]] = lambda role: iter(()),
        ask: Callable[[], KeptRows] | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        self.adapters = tuple(adapters)
        self.facts = facts
        self._weight = weight
        self._read = read
        self._ask = ask

    def weight(self, module: str) -> Tensor:
        """The untouched base's weight ``[d_out, d_in]``, float32."""
        return self._weight(module)

    @cached_property
    def stack(self) -> AdapterStack:
        """The adapters, read when a merger asks for them."""
        return self._read()

    @cached_property
    def kept(self) -> KeptRows:
        """The rows that the tasks kept, and the model; only for a merger with ``fitted = True``."""
        assert self._ask is not None
        return self._ask()

    @property
    def modules(self) -> tuple[str, ...]:
        """Every module that any of the adapters changes."""
        return tuple(self.stack.modules)

    @property
    def rank(self) -> int:
        """The largest rank that an adapter has on a module, at least 1."""
        return max(
            (int(one.owner.bincount().max()) for one in self.stack.modules.values() if len(one.owner)), default=1
        )

    def factors(self, task: str) -> LoraFactors:
        """The adapter of a task, in float64."""
        k = self._index(task)
        A, B, scaling, gain = {}, {}, {}, {}
        for module, stacked in self.stack.modules.items():
            own = stacked.owner == k
            has_gain = stacked.gain is not None and bool((stacked.gain[k] != 1).any())
            if has_gain or bool(own.any()):
                A[module], B[module] = stacked.A[own].double(), stacked.B[:, own].double()
                scaling[module] = float(stacked.scale[own][0]) if bool(own.any()) else 1.0
            if stacked.gain is not None and has_gain:
                gain[module] = stacked.gain[k].double()
        return LoraFactors(A, B, scaling, gain)

    def delta(self, task: str, module: str) -> Tensor | None:
        """The delta weight ``[d_out, d_in]`` of a task in float32; None on a module that its adapter leaves alone."""
        k, stacked = self._index(task), self.stack.modules[module]
        own = stacked.owner == k
        shift = None if stacked.gain is None else stacked.gain[k].double() - 1
        if not bool(own.any()) and (shift is None or not bool(shift.any())):
            return None
        low = (stacked.B[:, own].double() * stacked.scale[own].double()) @ stacked.A[own].double()
        if shift is not None and bool(shift.any()):
            low = add_rows(low, shift, self.weight(module))
        return low.float()

    def over(self, weights: Mapping[str, float]) -> Tensor:
        """Weights by task as float64 weights ``[K]`` over the stack's adapters; tasks may share one."""
        total = torch.zeros(len(self.stack.names), dtype=torch.float64)
        for task, adapter in zip(self.tasks, self.adapters, strict=True):
            total[self.stack.names.index(adapter)] += weights[task]
        return total

    def _index(self, task: str) -> int:
        return self.stack.names.index(self.adapters[self.tasks.index(task)])


@dataclass(frozen=True, kw_only=True)
class Merger(ABC):
    """A way to merge; its fields are its settings, ``paper`` says where it was published.

    Attributes:
        needs: Roles of what each task must have recorded when it was learnt (`lorabank.models.facts`): the ones that
            `merge` reads by ``sources.facts(role)``.
        fitted: Whether `merge` asks the model with the rows that the tasks kept (``sources.kept``). What it finds is
            stored then, for each stage.
        over: What a member is where nothing else is chosen: ``"adapters"`` for a sum, in which the weight 1 for each
            member is what the bank was trained as; ``"states"`` for a mean, since an adapter may be no state alone.
    """

    paper: ClassVar[str | None] = None
    needs: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = False
    over: ClassVar[Over] = "adapters"

    max_rank: int | None = setting(
        None, "Truncate the result to this rank by SVD; prints the error per module; default: keep it exact.", ge=1
    )

    def prepared(self, tasks: Sequence[str]) -> Merger:
        """The same for tasks of these names, where a setting names them.

        Raises:
            ConfigError: It names others.
        """
        return self

    def check(self, tasks: Sequence[str]) -> None:  # noqa: B027  (few have anything to refuse)
        """Refuse what cannot be merged, before anything is loaded.

        Raises:
            LorabankError: Settings do not fit together, or a package is not installed.
        """

    def sum_of(self, tasks: Sequence[str]) -> Mapping[str, float] | None:
        """The weight of each task where the result is a sum that needs no adapter read; None otherwise."""
        return None

    def near(self, tasks: Sequence[str]) -> Mapping[str, float]:
        """The weights of the sum that a result is compared with: its own, of any other merger those of the mean."""
        return self.sum_of(tasks) or dict.fromkeys(tasks, 1 / len(tasks))

    @abstractmethod
    def merge(self, sources: Sources) -> Merge | Told:
        """The result for some of the tasks it was prepared for. The same sources give the same result."""

    def parameters(self) -> dict[str, Any]:
        """The settings as JSON values, from which the merger is made again."""
        return asdict(self)
