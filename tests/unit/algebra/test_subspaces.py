"""Row spaces against an independent calculation of the principal angles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from lorabank.algebra.subspaces import rank, row_space, subspace_overlap, subspace_overlaps


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 12, generator=generator), torch.randn(6, 12, generator=generator)
    expected = np.mean(np.cos(subspace_angles(a.numpy().T, b.numpy().T)) ** 2)
    assert subspace_overlap(a, b) == pytest.approx(expected, abs=1e-6)
    assert subspace_overlap(b, a) == pytest.approx(expected, abs=1e-6)


def test_overlap_of_known_spaces() -> None:
    eye = torch.eye(6)
    assert subspace_overlap(eye[:2], eye[2:5]) == pytest.approx(0, abs=1e-12)
    assert subspace_overlap(eye[:2], 5 * eye[:4]) == pytest.approx(1)  # nested
    assert subspace_overlap(eye[:2], eye[1:3]) == pytest.approx(0.5)
    assert subspace_overlap(eye[:2], torch.zeros(3, 6)) == 0.0
    assert subspace_overlap(eye[:2], torch.zeros(0, 6)) == 0.0


def test_row_space_leaves_out_dependent_rows() -> None:
    a = torch.tensor([[3.0, 0, 0, 4.0], [6.0, 0, 0, 8.0], [0, 1.0, 0, 0]])
    basis = row_space(a)
    assert basis.shape == (2, 4)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    projector = np.zeros((4, 4))
    projector[np.ix_([0, 3], [0, 3])] = np.outer([0.6, 0.8], [0.6, 0.8])
    projector[1, 1] = 1
    np.testing.assert_allclose((basis.T @ basis).numpy(), projector, atol=1e-12)


def stretched(rows: int, width: int, ratio: float, seed: int) -> torch.Tensor:
    """Rows in float64 whose singular values fall evenly, on a logarithmic scale, from 1 to ``ratio``."""
    rng = np.random.default_rng(seed)
    left, right = np.linalg.qr(rng.normal(size=(rows, rows)))[0], np.linalg.qr(rng.normal(size=(width, rows)))[0]
    return torch.from_numpy(left @ np.diag(np.geomspace(1, ratio, rows)) @ right.T)


@pytest.mark.parametrize("ratio", [1.0, 0.02, 1e-3, 1e-5])
def test_many_overlaps_at_once_are_those_of_principal_angles(ratio: float) -> None:
    """Blocks of any rank, also where the squares of singular values keep too few digits."""
    new = stretched(4, 24, ratio, seed=0)
    blocks = [stretched(rows, 24, ratio, seed) for seed, rows in enumerate((4, 2, 7, 1), start=1)]
    found = subspace_overlaps(new, torch.cat(blocks), [len(block) for block in blocks])
    for value, block in zip(found, blocks, strict=True):
        p, q = (np.linalg.svd(rows.numpy(), full_matrices=False)[2] for rows in (new, block))
        cosines = np.linalg.svd(p @ q.T, compute_uv=False)
        assert value == pytest.approx(np.mean(cosines**2), abs=1e-10 if ratio == 1e-5 else 1e-12)


def test_many_overlaps_leave_out_dependent_rows() -> None:
    eye = torch.eye(6)
    blocks = [eye[:4], torch.zeros(2, 6), torch.stack([eye[1], 3 * eye[1], eye[5]]), eye[3:4]]
    found = subspace_overlaps(eye[:2], torch.cat(blocks), [4, 2, 3, 1])
    assert found == pytest.approx([1.0, 0.0, 0.5, 0.0], abs=1e-12)
    assert subspace_overlaps(torch.zeros(2, 6), eye, [6]) == [0.0]
    assert subspace_overlaps(eye[:2], eye[:0], []) == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (stretched(5, 9, 0.1, seed=0), 5),
        (stretched(5, 9, 0.1, seed=0).T, 5),  # more rows than columns
        (torch.cat([stretched(3, 9, 0.1, seed=0)] * 4), 3),
        (stretched(2, 9, 1e-5, seed=0), 2),
        (stretched(2, 9, 1e-7, seed=0), 1),
        (torch.ones(3, 4), 1),
        (torch.zeros(3, 4), 0),
        (torch.zeros(0, 4), 0),
    ],
)
def test_rank(rows: torch.Tensor, expected: int) -> None:
    assert rank(rows) == expected == len(row_space(rows))
