"""The row spaces of adapters: what their inputs are projected on, and how far two of them overlap.

Ranks and overlaps of many adapters are read from Gram matrices, which are small where the rows are few and wide. With
``A A^T = V diag(l) V^T`` the rows of ``diag(l)^-1/2 V^T A`` are an orthonormal basis of the row space, and l are the
squared singular values. A square keeps half of the digits of what is small beside the largest: an overlap that depends
on such a direction is computed by singular values instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_TOLERANCE = 1e-6
"""Directions whose singular value is below this share of the largest one are left out."""

_CLEAR, _ROUNDING = 1e-4, 1e-13
"""Shares of the largest eigenvalue: above the first an overlap keeps 12 digits, below the second lies no direction."""


def row_space(A: Tensor) -> Tensor:
    """An orthonormal basis ``[rank, d_in]`` of the row space of ``A [R, d_in]``, in float64."""
    if A.shape[0] == 0:
        return A.double()
    _, s, vh = torch.linalg.svd(A.double(), full_matrices=False)
    basis: Tensor = vh[s > _TOLERANCE * s[0]] if float(s[0]) > 0 else vh[:0]
    return basis


def rank(A: Tensor) -> int:
    """Directions of the row space of ``A [R, d_in]``: as many as `row_space` gives, without making them.

    The rank is nearly always as large as it can be. A Cholesky factor proves that in a tenth of the time that the
    eigenvalues take.
    """
    rows = A.double()
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    if not gram.any():
        return 0
    # The trace is at least the largest eigenvalue; the 2 is more than the factor's own rounding.
    least = (2 * _TOLERANCE**2 * gram.trace()).expand(len(gram)).diag()
    if not int(torch.linalg.cholesky_ex(gram - least).info):
        return len(gram)
    values = torch.linalg.eigvalsh(gram)
    return int((values > _TOLERANCE**2 * values[-1]).sum())


def subspace_overlap(A: Tensor, other: Tensor) -> float:
    """Mean squared cosine of the principal angles between two row spaces, in [0, 1].

    Divided by the smaller dimension, so equal or nested spaces give 1; random spaces of dimension p and q in d
    dimensions give ``max(p, q) / d`` in expectation.
    """
    p, q = row_space(A), row_space(other)
    smaller = min(p.shape[0], q.shape[0])
    return float((p @ q.T).square().sum()) / smaller if smaller else 0.0


def subspace_overlaps(A: Tensor, rows: Tensor, counts: Sequence[int]) -> list[float]:
    """`subspace_overlap` of A with each of several blocks of rows, to 12 digits.

    Args:
        A: ``[r, d_in]``.
        rows: ``[R, d_in]``, the blocks one below the other.
        counts: Rows of each block, R in all.
    """
    if not counts:
        return []
    new, parts = A.double(), rows.double().split(list(counts))
    others = pad_sequence(list(parts), batch_first=True)  # rows of zeros add no direction
    own, clear = _whitening(new @ new.T)
    theirs, each_clear = _whitening(others @ others.mT)
    cosines = own @ (new @ others.mT) @ theirs.mT
    smaller = torch.minimum(_directions(own), _directions(theirs))
    overlaps = cosines.square().sum((-2, -1)) / smaller.clamp(min=1)
    return [
        value if plain else subspace_overlap(new, part)
        for value, plain, part in zip(overlaps.tolist(), (clear & each_clear).tolist(), parts, strict=True)
    ]


def _whitening(gram: Tensor) -> tuple[Tensor, Tensor]:
    """From Gram matrices ``[..., r, r]`` to what makes orthonormal bases of their rows, and whether it is precise.

    Returns:
        ``[..., r, r]``, with a row of zeros for each direction that is left out; bool ``[...]``.
    """
    values, vectors = torch.linalg.eigh(gram)
    largest = values[..., -1:]
    kept = values > _TOLERANCE**2 * largest
    clear = (values > _CLEAR * largest) | (values <= _ROUNDING * largest)
    scale = torch.where(kept, values, torch.inf).rsqrt()
    return scale[..., None] * vectors.mT, clear.all(-1)


def _directions(whitening: Tensor) -> Tensor:
    return whitening.any(-1).sum(-1)
