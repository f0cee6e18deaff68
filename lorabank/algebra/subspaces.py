"""The row spaces of adapters: what their inputs are projected on, and how far two of them overlap."""

from __future__ import annotations

import torch
from torch import Tensor


def row_space(A: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    """An orthonormal basis ``[rank, d_in]`` of the row space of ``A [R, d_in]``, in float64.

    Directions whose singular value is below ``tolerance`` times the largest one are left out.
    """
    if A.shape[0] == 0:
        return A.double()
    _, s, vh = torch.linalg.svd(A.double(), full_matrices=False)
    basis: Tensor = vh[s > tolerance * s[0]] if float(s[0]) > 0 else vh[:0]
    return basis


def subspace_overlap(A: Tensor, other: Tensor) -> float:
    """Mean squared cosine of the principal angles between two row spaces, in [0, 1].

    Divided by the smaller dimension, so equal or nested spaces give 1; random spaces of dimension p and q in d
    dimensions give ``max(p, q) / d`` in expectation.
    """
    p, q = row_space(A), row_space(other)
    smaller = min(p.shape[0], q.shape[0])
    return float((p @ q.T).square().sum()) / smaller if smaller else 0.0
