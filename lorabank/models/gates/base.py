"""What every gate promises: weights over some states and the zero adapter, learned or not, for every module.

An entry of the shelf `lorabank.core.shelves.GATES` is a frozen dataclass of its settings, derived from `GateMethod`;
`build` makes the `Gate` over the members, whose parameters are then fitted. A `TokenGate` weighs every token by what
the module reads; a `lorabank.models.gates.texts.TextGate` gives each text one vector per module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import UninitializedParameter

from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting

Weigh = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""One module's weights ``[n, K + 1]``, the zero adapter first, of inputs ``x [n, d_in]``, ``h = x A^T [n, R]`` and,
where an adapter has a row gain, ``W x [n, d_out]``."""


class Gate(nn.Module):
    """Weights over K states and the zero adapter.

    A parameter whose width the adapters do not tell is uninitialised until it is placed or loaded. The parameters are
    stored under their names: of a `ParameterDict` ``kind`` by module, ``kind:<module>``, with the
    module's dots as ``/`` inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Tensor] | None = None

    @property
    def learns(self) -> bool:
        """Whether a parameter needs a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Plain tensors to store."""
        return {name: value.detach().cpu().contiguous() for name, value in self._named().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over stored tensors.

        Raises:
            KeyError: They are not exactly those of `tensors`.
        """
        copy_into(self._named(), tensors)
        return self

    def _named(self) -> dict[str, Tensor]:
        parts = {name: name.partition(".") for name, _ in self.named_parameters()}
        return {
            f"{kind}:{module_of(key)}" if key else kind: self.get_parameter(name)
            for name, (kind, _, key) in parts.items()
        }

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


class TokenGate(Gate, ABC):
    """Weights for every token that a module reads."""

    @abstractmethod
    def bound(self, module: str, members: StateStack) -> Weigh:
        """The weights of one module; where no parameter needs a gradient, none may change while this is used.

        Args:
            module: Its name.
            members: The states that compete.
        """

    def over(self, members: StateStack) -> StateStack:
        """The states as they answer under the gate: as they are, unless the gate changes their factors."""
        return members


def copy_into(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Give a gate's parameters the values that were stored under their names.

    Raises:
        KeyError: A name is in one of the two only.
    """
    if own.keys() != tensors.keys():
        raise KeyError(sorted(own.keys() ^ tensors.keys())[0])
    with torch.no_grad():
        for name, value in own.items():
            if isinstance(value, UninitializedParameter):
                value.materialize(tensors[name].shape)
            value.copy_(tensors[name])


def key_of(module: str) -> str:
    """The key of a module in a gate's `ParameterDict`, where no dot may be."""
    return module.replace(".", "/")


def module_of(key: str) -> str:
    """The module whose key it is."""
    return key.replace("/", ".")


def by_module(members: StateStack, make: Callable[[str], Tensor]) -> nn.ParameterDict:
    """A parameter for every module under `key_of` it, on the device of its factors."""
    return nn.ParameterDict(
        {
            key_of(module): nn.Parameter(make(module).to(factors.A.device))
            for module, factors in members.stack.modules.items()
        }
    )


def unplaced(members: StateStack) -> UninitializedParameter:
    """A parameter on the members' device, of a shape that is known when it is placed or loaded."""
    with members.matrix.device:
        return UninitializedParameter()


def drawn(width: int, *names: str) -> Tensor:
    """Standard normal numbers float32 ``[width]`` that depend on some names alone.

    A member so starts with the same row wherever it stands: the order of the members changes nothing.
    """
    seed = int.from_bytes(sha256("\0".join(names).encode()).digest()[:8], "little", signed=True)
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class GateMethod(ABC):
    """A kind of gate; its fields are its settings, ``paper`` says where it was published.

    ``trained`` says whether it has parameters to fit, ``balanced`` whether its steps see as many rows of each task,
    ``guarded`` whether what it learnt is kept only where the loss on the kept rows has fallen, and ``routed`` whether
    its weights depend on what a router says of the members.
    """

    paper: ClassVar[str | None] = None
    trained: ClassVar[bool] = True
    balanced: ClassVar[bool] = False
    guarded: ClassVar[bool] = False
    routed: ClassVar[bool] = False

    epochs: float = setting(2.0, "Passes over the calibration samples.", gt=0)
    learning_rate: float = setting(1e-2, "Learning rate of the gate.", gt=0, le=10)

    @property
    def limit(self) -> int | None:
        """Maximum number of kept rows of each task that it is fitted on; None for all."""
        return None

    @abstractmethod
    def build(self, members: StateStack) -> Gate:
        """The gate over some states, as it is before it learns."""

    def regulariser(self, gate: Gate) -> Tensor:
        """What is added to the task loss, weighted: a scalar."""
        return torch.zeros(())


@dataclass(frozen=True, kw_only=True)
class FixedGate(GateMethod):
    """A kind of gate without parameters to fit: it has no settings of a fit either."""

    trained: ClassVar[bool] = False

    epochs: float = field(default=GateMethod.epochs, init=False)
    learning_rate: float = field(default=GateMethod.learning_rate, init=False)
