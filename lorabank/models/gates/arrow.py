r"""Arrow (arXiv 2405.11157): a token goes to the states whose main direction it has; nothing is learned.

    v_k = top right singular vector of delta W_k = sum_j M_kj s_j B_j A_j
    w = softmax(|x . v_k| / tau) over the k largest, 0 for the others

In rank space ``x . v_k = (A x) . c_k``: with the singular values of the core, u the left vector and sigma its value,
``c_k = s B^T u / sigma`` over the state's rows, since ``v_k = delta W_k^T u / sigma``. Row gains do not count in v_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.algebra.stack import StackedFactors
from lorabank.algebra.states import StateStack
from lorabank.core.settings import setting
from lorabank.models.gates.base import FixedGate, TokenGate, Weigh
from lorabank.models.gates.texts import with_zero


@dataclass(frozen=True)
class Arrow(FixedGate):
    """The states whose main direction a token has the most of."""

    paper = "Arrow, arXiv 2405.11157"

    top_k: int = setting(3, "How many states answer a token.", ge=1)
    temperature: float = setting(1.0, "Divides the scores.", gt=0)

    def build(self, members: StateStack) -> Prototypes:
        """The states' directions."""
        return Prototypes(self.top_k, self.temperature)


class Prototypes(TokenGate):
    """Without parameters: the directions follow from the adapters.

    Args:
        top_k: How many states answer a token.
        temperature: Divides the scores.
    """

    def __init__(self, top_k: int, temperature: float) -> None:
        super().__init__()
        self._top_k, self._temperature = top_k, temperature

    def bound(self, module: str, members: StateStack) -> Weigh:
        """The weights of one module."""
        factors = members.factors(module)
        own = members.matrix[:, factors.owner]
        directions = torch.stack([_direction(factors, row) for row in own], 1)
        k = min(self._top_k, members.count)

        def weigh(x: Tensor, h: Tensor, wx: Tensor | None) -> Tensor:
            top = ((h @ directions.to(h.dtype)).abs() / self._temperature).topk(k, -1)
            weights = torch.zeros(len(h), members.count, device=h.device, dtype=h.dtype)
            return with_zero(weights.scatter(-1, top.indices, top.values.softmax(-1)))

        return weigh


def _direction(factors: StackedFactors, own: Tensor) -> Tensor:
    """c_k ``[R]`` of one state, which has ``own [R]`` of each row; 0 where it changes nothing."""
    rows = own.nonzero().flatten()
    found = torch.zeros(len(own), dtype=torch.float64, device=own.device)
    if len(rows):
        B = factors.B[:, rows].double() * (factors.scale[rows].double() * own[rows].double())
        left, right = torch.linalg.qr(B).R, torch.linalg.qr(factors.A[rows].double().T).R
        U, S, _ = torch.linalg.svd(left @ right.T)
        if float(S[0]) > 0:
            found[rows] = left.T @ U[:, 0] / S[0]
    return found
