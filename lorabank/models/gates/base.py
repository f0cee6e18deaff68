"""What every gate promises: weights over some adapters and the zero adapter, learned, for every module and token.

An entry of the shelf `lorabank.core.shelves.GATES` is a frozen dataclass of its settings, derived from `GateMethod`;
`build` makes the `Gate` over some adapters, whose parameters are then fitted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.core.settings import setting

Weigh = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""One module's weights ``[n, K + 1]``, the zero adapter first, of inputs ``x [n, d_in]``, ``h = x A^T [n, R]`` and,
where an adapter has a row gain, ``W x [n, d_out]``."""


class Gate(nn.Module, ABC):
    """Weights over K adapters and the zero adapter."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Tensor] | None = None

    @abstractmethod
    def bound(self, module: str, members: StackedFactors) -> Weigh:
        """The weights of one module; where no parameter needs a gradient, none may change while this is used.

        Args:
            module: Its name.
            members: The adapters that compete on it.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Plain tensors to store."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Gate:
        """Take over stored tensors.

        Raises:
            KeyError: They are not exactly those of `tensors`.
        """

    def regularised(self) -> Sequence[Tensor]:
        """The parameters that the gate's own regulariser makes small; none where it has none."""
        return ()

    @contextmanager
    def watched(self, seen: list[Tensor]) -> Iterator[None]:
        """For the length of a block, append all weights that are computed to ``seen``."""
        self._seen = seen
        try:
            yield
        finally:
            self._seen = None

    def note(self, weights: Tensor) -> None:
        """Show weights to who watches."""
        if self._seen is not None:
            self._seen.append(weights.detach())


def copy_into(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Give a gate's parameters the values that were stored under their names.

    Raises:
        KeyError: A name is in one of the two only.
    """
    if own.keys() != tensors.keys():
        raise KeyError(sorted(own.keys() ^ tensors.keys())[0])
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


@dataclass(frozen=True, kw_only=True)
class GateMethod(ABC):
    """A kind of gate; its fields are its settings, ``paper`` says where it was published."""

    paper: ClassVar[str | None] = None

    epochs: float = setting(2.0, "Passes over the calibration samples.", gt=0)
    learning_rate: float = setting(1e-2, "Learning rate of the gate.", gt=0, le=10)

    @abstractmethod
    def build(self, stack: AdapterStack) -> Gate:
        """The gate over the adapters of a stack, as it is before it learns."""

    def regulariser(self, gate: Gate) -> Tensor:
        """What is added to the task loss, weighted: a scalar."""
        return torch.zeros(())


def membership(factors: StackedFactors, count: int, dtype: torch.dtype) -> Tensor:
    """``[R, K + 1]``: 1 where the row belongs to the adapter; the zero adapter, first, has none."""
    return (factors.owner.unsqueeze(1) + 1 == torch.arange(count + 1, device=factors.owner.device)).to(dtype)
