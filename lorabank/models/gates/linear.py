r"""A linear router per module: ``p = softmax(G x)`` for every token, over all states or the k likeliest.

    w = p,   or p of the k largest entries divided by their sum, and 0 for the others;   y = W x + sum_k w_k h_k

Each state's row of G starts with small numbers drawn from its own name, so that the order of members changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorabank.algebra.states import StateStack
from lorabank.models.gates.base import TokenGate, Weigh, by_module, drawn, key_of
from lorabank.models.gates.texts import with_zero

_START = 0.02
"""Standard deviation at first."""


class LinearGate(TokenGate):
    """``router [K, d_in]`` by module.

    Args:
        members: The states that compete, K of them.
        top_k: How many of them answer a token; 0 for all.
    """

    def __init__(self, members: StateStack, top_k: int = 0) -> None:
        super().__init__()

        def start(module: str) -> Tensor:
            width = members.factors(module).A.shape[1]
            return _START * torch.stack([drawn(width, module, *members.key(k)) for k in range(members.count)])

        self.router = by_module(members, start)
        self._top_k = top_k

    def bound(self, module: str, members: StateStack) -> Weigh:
        """The weights of one module."""
        router = self.router[key_of(module)]

        def weigh(x: Tensor, h: Tensor, wx: Tensor | None) -> Tensor:
            shares = (x.to(router.dtype) @ router.T).softmax(-1)
            weights = largest(shares, self._top_k)
            self.heed(shares, weights)
            return with_zero(weights).to(h.dtype)

        return weigh

    def heed(self, shares: Tensor, weights: Tensor) -> None:
        """Look at a pass's shares p and weights w, each ``[n, K]``; by default nothing is done with them."""


def largest(shares: Tensor, k: int) -> Tensor:
    """``shares [n, K]``: the k largest of each row divided by their sum, 0 for the others; all for k = 0."""
    if not 0 < k < shares.shape[-1]:
        return shares
    top = shares.topk(k, -1)
    return torch.zeros_like(shares).scatter(-1, top.indices, top.values / top.values.sum(-1, keepdim=True))
