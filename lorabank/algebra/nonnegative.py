"""Least squares under non-negative coefficients, exactly, for few of them.

    min_v 1/2 v^T H v + q^T v,    v >= 0

by the active set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23) on the Gram matrix
H: coefficients become free one by one, the one with the steepest descent first, and those that a solution would make
negative are fixed at 0 again. Each step solves the equations of the free ones, so the end is exact up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nonnegative_quadratic(H: Tensor, q: Tensor) -> Tensor:
    """The minimiser v of the problem above.

    Args:
        H: Symmetric and positive semidefinite, ``[n, n]``; of several minimisers one is found.
        q: ``[n]``.

    Returns:
        float64 ``[n]``, each at least 0, on the CPU.
    """
    H, q = H.detach().double().cpu(), q.detach().double().cpu()
    v, free = torch.zeros_like(q), torch.zeros_like(q, dtype=torch.bool)
    tolerance = 1e-12 * max(1.0, float(q.abs().max()) if len(q) else 0.0)
    for _ in range(3 * len(q)):
        descent = (-(H @ v) - q).masked_fill(free, -torch.inf)
        if not len(q) or float(descent.max()) <= tolerance:
            break
        free[descent.argmax()] = True
        v = _walk(H, q, v, free)
    return v


def _walk(H: Tensor, q: Tensor, v: Tensor, free: Tensor) -> Tensor:
    """To the minimiser over the free coefficients, which are fixed again (in place) as soon as they reach 0."""
    while True:
        aim = torch.zeros_like(v)
        aim[free] = torch.linalg.lstsq(H[free][:, free], -q[free, None], driver="gelsd").solution[:, 0]
        low = free & (aim <= 0)
        if not bool(low.any()):
            return aim
        shares = torch.where(low, v / (v - aim).clamp(min=torch.finfo(v.dtype).tiny), torch.inf)
        v = v + shares.min() * (aim - v)
        free &= v > 1e-15
        free[shares.argmin()] = False
        v = v.where(free, 0.0)
        if not bool(free.any()):
            return v
