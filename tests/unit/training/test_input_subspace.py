"""InfLoRA's A against numpy's SVD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.models.facts.inputs import InputCovariance
from lorabank.training.input_subspace import design_A, design_adapter, extend_memory, input_memory, outside

D = 8


def covariance(seed: int, *, d: int = D, decay: float = 0.5) -> Tensor:
    """A random covariance whose eigenvalues fall by ``decay``."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return torch.from_numpy((q * decay ** np.arange(d)) @ q.T)


def memory_by_svd(tasks: Sequence[Tensor], threshold: float) -> NDArray[np.float64]:
    """The memory as projections onto a growing space, each step an SVD of the projected covariance."""
    basis = np.zeros((tasks[0].shape[0], 0))
    for number, task in enumerate(tasks):
        C = task.numpy()
        total = np.sum(np.linalg.svd(C, compute_uv=False) ** 2)
        U, S, _ = np.linalg.svd(C - basis @ basis.T @ C)
        if number == 0:
            count = max(1, int(np.sum(np.cumsum(S**2) / total < threshold)))
        else:
            held, count = 1 - np.sum(S**2) / total, 0
            while held < threshold and count < len(S):
                held += S[count] ** 2 / total
                count += 1
        basis = np.hstack([basis, U[:, :count]])
    return basis


def complement_by_svd(tasks: Sequence[Tensor], threshold: float) -> NDArray[np.float64]:
    """The same from the other side: the free space, from which directions are taken away."""
    free = np.linalg.svd(memory_by_svd(tasks[:1], threshold))[0][:, memory_by_svd(tasks[:1], threshold).shape[1] :]
    for task in tasks[1:]:
        C = task.numpy()
        total = np.sum(np.linalg.svd(C, compute_uv=False) ** 2)
        U, S, _ = np.linalg.svd(free @ free.T @ C)
        left, count = np.sum(S**2) / total, 0
        while left > 1 - threshold and count < free.shape[1]:
            left -= S[count] ** 2 / total
            count += 1
        if count:
            taken = free - U[:, :count] @ U[:, :count].T @ free
            free = np.linalg.svd(taken)[0][:, : free.shape[1] - count]
    return free


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.98])
def test_memory_is_that_of_a_growing_svd(threshold: float) -> None:
    tasks = [covariance(1), covariance(2), covariance(3)]
    found = input_memory(tasks, threshold=threshold).numpy()
    expected = memory_by_svd(tasks, threshold)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-10)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-9)


def test_memory_and_stored_complement_fill_the_space() -> None:
    tasks = [covariance(1), covariance(2), covariance(3)]
    memory = input_memory(tasks, threshold=0.98).numpy()
    free = complement_by_svd(tasks, 0.98)
    assert 0 < free.shape[1] < D / 2
    np.testing.assert_allclose(memory @ memory.T + free @ free.T, np.eye(D), atol=1e-9)


def test_memory_holds_the_asked_share_of_every_later_task() -> None:
    tasks = [covariance(1), covariance(2), covariance(3)]
    for power in (1, 2):
        M = input_memory(tasks, threshold=0.9, power=power).numpy()
        for task in tasks[1:]:
            energy = np.linalg.matrix_power(task.numpy(), power)
            assert np.trace(M.T @ energy @ M) / np.trace(energy) >= 0.9


def test_power_one_counts_variance() -> None:
    """Eigenvalues 1, 1/2, 1/4, ...: the first two hold 3/4 of the variance and 15/16 of its square."""
    C = torch.diag(0.5 ** torch.arange(20, dtype=torch.float64))
    empty = torch.zeros(20, 0)
    assert extend_memory(empty, C, threshold=0.9, power=2).shape[1] == 1
    assert extend_memory(empty, C, threshold=0.9, power=1).shape[1] == 3  # 1 - 1/8 < 0.9 < 1 - 1/16


def test_the_first_A_is_the_leading_directions() -> None:
    C = covariance(4)
    A = design_A([], C, 3)
    U = np.linalg.svd(C.numpy())[0][:, :3].T / np.sqrt(3)
    assert A.dtype == torch.float32
    for row, expected in zip(A.double().numpy(), U, strict=True):
        np.testing.assert_allclose(row * np.sign(row @ expected), expected, atol=1e-6)


def test_a_later_A_is_the_leading_directions_outside_the_memory() -> None:
    tasks, current = [covariance(1), covariance(2)], covariance(5)
    A = design_A(tasks, current, 2, threshold=0.9).double().numpy()
    M = memory_by_svd(tasks, 0.9)
    U = np.linalg.svd(current.numpy() - M @ M.T @ current.numpy())[0][:, :2].T / np.sqrt(3)
    for row, expected in zip(A, U, strict=True):
        np.testing.assert_allclose(row * np.sign(row @ expected), expected, atol=1e-6)
    np.testing.assert_allclose(A @ A.T, np.eye(2) / 3, atol=1e-6)
    np.testing.assert_allclose(A @ M, 0, atol=1e-6)


def test_a_module_without_any_input_keeps_its_A_outside_the_memory() -> None:
    """An expert to which no token of the new task was sent."""
    before = InputCovariance({"x": covariance(1, decay=0.3)}, {"x": 1}, {"x": "x", "idle": "x"})
    now = InputCovariance({"x": covariance(5)}, {"x": 1}, {"x": "x"})
    assert design_adapter([before], now, ["x", "idle"], 2).keys() == {"x"}
    A = torch.randn(3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    M = memory_by_svd([before.of("idle")], 0.98)
    assert 0 < M.shape[1] < D
    np.testing.assert_allclose(outside([before], "idle", A).numpy(), A.numpy() @ (np.eye(D) - M @ M.T), atol=1e-9)
    assert torch.equal(outside([now], "idle", A), A)


def test_inputs_of_earlier_tasks_pass_unchanged_whatever_B_becomes() -> None:
    """Earlier inputs within three dimensions of eight, all kept: A answers them with zero.

    The first task's directions stay below the threshold, so the task counts twice to be kept whole.
    """
    rng = np.random.default_rng(6)
    old = torch.from_numpy(rng.normal(size=(50, 3)) @ rng.normal(size=(3, D)))
    new = torch.from_numpy(rng.normal(size=(50, D)))
    A = design_A([old.T @ old / 50] * 2, new.T @ new / 50, 4, threshold=1.0).double()
    assert float((old @ A.T).abs().max()) < 1e-5
    assert float((new @ A.T).abs().max()) > 0.1


def test_where_no_direction_is_left_rows_are_zero() -> None:
    """Three of eight dimensions are used by earlier tasks, the new one lives in them and two more."""
    eye = torch.eye(D, dtype=torch.float64)
    old = eye[:, :3] @ eye[:3]
    A = design_A([old, old], eye[:, :5] @ eye[:5], 4, threshold=1.0).double()
    assert (A.norm(dim=1) > 1e-9).tolist() == [True, True, False, False]
    np.testing.assert_allclose((A.T @ A)[3:5, 3:5], np.eye(2) / 3, atol=1e-6)
    np.testing.assert_allclose(A[:, [0, 1, 2, 5, 6, 7]], 0, atol=1e-9)


def test_modules_with_one_input_get_one_A() -> None:
    """q and k share their input in both tasks; the first task did not adapt `side`."""
    sums = [{"q": covariance(seed), "o": covariance(seed + 1), "side": covariance(seed + 2)} for seed in (0, 5)]
    shared = {"q": "q", "k": "q", "o": "o"}
    tokens = dict.fromkeys(sums[0], 1)
    first = InputCovariance({name: sums[0][name] for name in ("q", "o")}, tokens, shared)
    current = InputCovariance(sums[1], tokens, shared | {"side": "side"})
    designed = design_adapter([first], current, ["q", "k", "o", "side"], 2, threshold=0.6)
    assert torch.equal(designed["q"], designed["k"])
    assert torch.equal(designed["q"], design_A([first.of("q")], current.of("q"), 2, threshold=0.6))
    assert torch.equal(designed["o"], design_A([first.of("o")], current.of("o"), 2, threshold=0.6))
    assert torch.equal(designed["side"], design_A([], current.of("side"), 2))
