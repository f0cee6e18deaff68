r"""InfLoRA (CVPR 2024, arXiv 2404.00228): the new A lies outside what earlier tasks fed into a module; only B trains.

The input of a module enters through its uncentred covariance ``C = 1/T sum_t x_t x_t^T [d_in, d_in]``. A memory of
orthonormal directions (GPM, arXiv 2103.09762) grows with each finished task:

    first task    the leading eigenvectors of C_1 whose share of the energy stays below the threshold, at least one
    task k        the leading left singular vectors of (I - M M^T) C_k, until those and M hold the threshold's share

and the new task starts from ``A = U_r^T / sqrt(3)``, U_r the r leading left singular vectors of ``(I - M M^T) C``,
``B = 0``. The rows of A are orthogonal to M, so whatever B becomes, an input within M's span passes unchanged.

As in the released code (liangyanshuo/InfLoRA), energy means the squared singular values of C, that is the squared
eigenvalues (``power=2``); GPM's own criterion is the eigenvalues themselves (``power=1``), which holds many more
directions where a few are very strong, as in language models. C of the new task is taken before it is trained (earlier
adapters active, B = 0), C of a finished one after.

Where this differs from the released code:

- The covariance of each task is stored and the memory is built from those, in order, instead of a running memory. The
  released DualGPM keeps the memory's complement once that is smaller, which saves storage and spans the same space
  (except after a first task that fills half the space or more: there the code takes the memory for its complement).
- The threshold does not rise with the task's number, because a bank does not know how many tasks will come.
- Directions in which the new task has no input at all get zero rows; the released code takes any vectors there, inside
  the memory too.
- Inputs of padding are left out. The adapter is scaled by s as every other, where the released code has s = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorabank.models.facts.inputs import InputCovariance

_TOLERANCE = 1e-6
"""Directions with less than this share of the covariance's norm count as empty."""


def extend_memory(memory: Tensor, covariance: Tensor, *, threshold: float = 0.98, power: int = 2) -> Tensor:
    """Add the directions that a finished task needs.

    Args:
        memory: ``[d_in, Q]`` orthonormal columns; Q is 0 before the first task.
        covariance: ``[d_in, d_in]`` of the finished task.
        threshold: Share of the energy that the memory shall hold, in (0, 1].
        power: 2 for the released code's energy, 1 for GPM's.

    Returns:
        ``[d_in, Q']`` float64, the columns of ``memory`` first.
    """
    memory, C = memory.double(), _symmetric(covariance)
    energy = C @ C if power == 2 else C
    total = float(energy.trace())
    if total <= 0:
        return memory
    values, vectors = _outside(memory, energy, power)
    shares = values / total
    held = 1 - float(shares.sum())
    if memory.shape[1] == 0:
        count = max(1, int((shares.cumsum(0) < threshold).sum()))
    else:
        count = int((held + shares.cumsum(0) - shares < threshold).sum())
    return torch.cat([memory, vectors[:, :count]], dim=1)


def input_memory(earlier: Sequence[Tensor], *, threshold: float = 0.98, power: int = 2) -> Tensor:
    """The memory ``[d_in, Q]`` after earlier tasks, from their covariances (at least one) in sequence order."""
    memory = earlier[0].new_zeros(earlier[0].shape[0], 0)
    for covariance in earlier:
        memory = extend_memory(memory, covariance, threshold=threshold, power=power)
    return memory


def design_A(earlier: Sequence[Tensor], current: Tensor, r: int, *, threshold: float = 0.98, power: int = 2) -> Tensor:
    """The fixed A of a new task.

    Args:
        earlier: ``[d_in, d_in]`` covariances of finished tasks in sequence order; empty for the first task.
        current: ``[d_in, d_in]`` covariance of the new task.
        r: Rank.
        threshold: See `extend_memory`.
        power: See `extend_memory`.

    Returns:
        ``[r, d_in]`` float32: orthogonal rows of length 1/sqrt(3), orthogonal to the memory, the strongest direction
        of the new task first; zero rows where no direction is left.
    """
    C = _symmetric(current)
    memory = input_memory(earlier, threshold=threshold, power=power).to(C) if earlier else C.new_zeros(C.shape[0], 0)
    _, vectors = _outside(memory, C @ C, 2)
    A = C.new_zeros(r, C.shape[0])
    found = min(r, vectors.shape[1])
    A[:found] = vectors[:, :found].T / math.sqrt(3)
    return A.float()


def design_adapter(
    earlier: Sequence[InputCovariance],
    current: InputCovariance,
    modules: Sequence[str],
    r: int,
    *,
    threshold: float = 0.98,
    power: int = 2,
) -> dict[str, Tensor]:
    """`design_A` for every module; modules with the same inputs get the same A, computed once.

    A finished task that did not adapt a module says nothing of its inputs and is left out there. A module into which
    the new task feeds nothing, an expert to which no token was sent, gets no A: `outside` is for it.
    """
    done: dict[tuple[str | None, ...], Tensor] = {}
    designed = {}
    for module in (module for module in modules if module in current.shared):
        known = [task for task in earlier if module in task.shared]
        key = (current.shared[module], *(task.shared.get(module) for task in earlier))
        if key not in done:
            done[key] = design_A(
                [task.of(module) for task in known], current.of(module), r, threshold=threshold, power=power
            )
        designed[module] = done[key].clone()
    return designed


def outside(earlier: Sequence[InputCovariance], module: str, A: Tensor, *, threshold: float = 0.98) -> Tensor:
    """An A ``[r, d_in]`` without what earlier tasks fed into the module, by the memory of `input_memory`."""
    known = [task.of(module) for task in earlier if module in task.shared]
    if not known:
        return A
    memory = input_memory(known, threshold=threshold).to(A.device)
    return (A.double() - (A.double() @ memory) @ memory.T).to(A.dtype)


def _outside(memory: Tensor, energy: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, positive) and eigenvectors ``[d, P]`` of the energy with the memory projected out.

    The energy is ``C^power``. With power 2 the eigenvectors are the left singular vectors of ``(I - M M^T) C``, the
    eigenvalues their squared singular values.
    """
    half = energy - memory @ (memory.T @ energy)
    values, vectors = torch.linalg.eigh(_symmetric(half - (half @ memory) @ memory.T))
    kept = values > _TOLERANCE**power * float(energy.diagonal().sum())
    values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    # eigenvectors of small eigenvalues are only roughly orthogonal to the memory
    vectors = vectors - memory @ (memory.T @ vectors)
    q, upper = torch.linalg.qr(vectors)
    return values, q * upper.diagonal().sign()


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix.double() + matrix.double().T) / 2
