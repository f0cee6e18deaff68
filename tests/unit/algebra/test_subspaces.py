"""Row spaces against an independent calculation of the principal angles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from lorabank.algebra.subspaces import row_space, subspace_overlap


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
