r"""Members of a mixture as states: sums of adapters that were active together when a task was learnt.

A state is a row of the matrix ``M [K, n]`` over the n adapters of a stack. Weights a over states are weights ``a M``
over adapters, so that every product over stacked factors serves states too:

    sum_k a_k sum_j M_kj s_j B_j A_j x  =  B_all diag((a M)[owner] * scale) A_all x

Of isolated adapters M is the identity; of O-LoRA's the row of task t is 1 for the adapters 1..t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.algebra.stack import AdapterStack, StackedFactors


@dataclass(frozen=True)
class StateStack:
    """K states over the stack of all adapters that any of them needs.

    Attributes:
        stack: n adapters.
        matrix: M, float32 ``[K, n]`` on the stack's device: how much of each adapter each state has.
    """

    stack: AdapterStack
    matrix: Tensor

    @classmethod
    def apart(cls, stack: AdapterStack) -> StateStack:
        """Every adapter is a state of its own."""
        return cls(stack, torch.eye(len(stack.names), device=_device(stack)))

    @classmethod
    def build(cls, states: Sequence[Sequence[str]], select: Callable[[Sequence[str]], AdapterStack]) -> StateStack:
        """States given as the adapters that they sum.

        Args:
            states: Names of each state's adapters.
            select: Gives the stack of some adapters.
        """
        names = tuple(dict.fromkeys(name for state in states for name in state))
        stack = select(names)
        rows = [[float(name in state) for name in names] for state in map(frozenset, states)]
        return cls(stack, torch.tensor(rows, device=_device(stack)))

    @property
    def count(self) -> int:
        """K."""
        return len(self.matrix)

    def factors(self, module: str) -> StackedFactors:
        """The stacked factors of one module."""
        return self.stack.modules[module]

    def membership(self, module: str, dtype: torch.dtype) -> Tensor:
        """``[R, K + 1]``: how much of each row each state has; the zero adapter, first, has none."""
        own = self.matrix[:, self.factors(module).owner].T.to(dtype)
        return torch.nn.functional.pad(own, (1, 0))

    def gains(self, module: str) -> Tensor | None:
        """``[K, d_out]``: what each state adds to a row gain of 1; None where no adapter has one."""
        gain = self.factors(module).gain
        return None if gain is None else self.matrix.to(gain) @ (gain - 1)

    def key(self, k: int) -> tuple[str, ...]:
        """The adapters of a state, sorted: what the state is, wherever it stands among others."""
        return tuple(sorted(name for name, has in zip(self.stack.names, self.matrix[k].tolist(), strict=True) if has))


def _device(stack: AdapterStack) -> torch.device | str:
    return next((factors.A.device for factors in stack.modules.values()), "cpu")
