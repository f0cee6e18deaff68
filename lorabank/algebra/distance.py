r"""How far a merge is from the weighted sum of the adapters that it was made of, module by module.

    || M - S ||_F / || S ||_F,    S = sum_k w_k ((diag(g_k) - 1) W + s_k B_k A_k)

All of it is computed in float64. Where neither side has a row gain or delta weights of full rank, the ``d_out x d_in``
matrices are never formed: with ``B = Q_B R_B`` and ``A^T = Q_A R_A`` the norm of ``B A`` is that of the small
``R_B R_A^T``, and a difference of low ranks is one of low rank, ``[B, -B'] [A; A']``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack


def distance_from_sum(
    made: LoraFactors | DenseDelta, members: AdapterStack, weights: Tensor, weight: Callable[[str], Tensor]
) -> dict[str, float]:
    """The relative distance of a merge from ``sum_k w_k delta W_k``.

    Args:
        made: The merge.
        members: What it was made of.
        weights: ``[K]``, of the members.
        weight: Module name to W ``[d_out, d_in]``, the untouched base's; asked for only where there is a row gain.

    Returns:
        Module name to the distance, over the modules of both. Where the sum is 0: 0 if the merge is 0 too, else 1.
    """
    own = made.delta if isinstance(made, DenseDelta) else made.A
    return {
        module: _relative(
            _merge_on(made, module), _sum_on(members, module, weights.double().cpu()), partial(weight, module)
        )
        for module in dict.fromkeys((*members.modules, *own))
    }


@dataclass(frozen=True)
class _Matrix:
    """``diag(rows) W + B A + full``; a part that is None is 0."""

    low: tuple[Tensor, Tensor] | None = None
    rows: Tensor | None = None
    full: Tensor | None = None

    def norm(self, weight: Callable[[], Tensor]) -> float:
        if self.rows is None and self.full is None:
            if self.low is None:
                return 0.0
            B, A = (torch.linalg.qr(part, mode="r").R for part in (self.low[0], self.low[1].T))
            return float((B @ A.T).norm())
        parts = [] if self.full is None else [self.full]
        parts += [] if self.low is None else [self.low[0] @ self.low[1]]
        parts += [] if self.rows is None else [self.rows[:, None] * weight().to(self.rows)]
        return float(torch.stack(parts).sum(0).norm())

    def less(self, other: _Matrix) -> _Matrix:
        """The difference; ``other`` has no full part."""
        low, rows = self.low, self.rows
        if other.low is not None:
            minus = -other.low[0], other.low[1]
            low = minus if low is None else (torch.cat([low[0], minus[0]], 1), torch.cat([low[1], minus[1]], 0))
        if other.rows is not None:
            rows = -other.rows if rows is None else rows - other.rows
        return replace(self, low=low, rows=rows)


def _relative(made: _Matrix, exact: _Matrix, weight: Callable[[], Tensor]) -> float:
    gap, size = made.less(exact).norm(weight), exact.norm(weight)
    return gap / size if size > 0 else float(gap > 0)


def _merge_on(made: LoraFactors | DenseDelta, module: str) -> _Matrix:
    if isinstance(made, DenseDelta):
        return _Matrix(full=made.delta[module].double()) if module in made.delta else _Matrix()
    if module not in made.A:
        return _Matrix()
    low = made.scaling[module] * made.B[module].double(), made.A[module].double()
    gain = made.gain.get(module)
    return _Matrix(low, None if gain is None else gain.double() - 1)


def _sum_on(members: AdapterStack, module: str, weights: Tensor) -> _Matrix:
    factors = members.modules.get(module)
    if factors is None:
        return _Matrix()
    weights = weights.to(factors.A.device)
    rows = weights[factors.owner] * factors.scale.double()
    shift = None if factors.gain is None else weights @ (factors.gain.double() - 1)
    return _Matrix((factors.B.double() * rows, factors.A.double()), shift)
