"""Variants that freeze matrices or hold entries at zero while they train, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lorabank.training.variants.base import Step
from tests.unit.training.variants.test_steps import training
from tests.unit.training.variants.test_variants import (
    R,
    close,
    loss,
)

# ---------------------------------------------------------------------------------------------------------- aflora


def test_aflora_freezes_more_and_more_matrices_and_then_all(bases) -> None:
    trial = training(bases, "aflora", set=("aflora.every=2", "aflora.first=0.1", "aflora.last=0.4"))
    own: Any = trial.parametrization
    matrices, optimizer = [*own.A, *own.B], trial.optimizer(torch.optim.AdamW)
    frozen: list[int] = []
    for number in range(1, 21):
        before = [matrix.detach().clone() for matrix in matrices]
        vectors = [v.detach().clone() for v in own.v]
        trial.whole_step(optimizer, Step(number, 20))
        rest = [torch.equal(matrix, old) for matrix, old in zip(matrices, before, strict=True)]
        assert rest == own.frozen.tolist() or number == 1  # v is 0 at first, so A and B have no gradient
        assert not any(torch.equal(v, old) for v, old in zip(own.v, vectors, strict=True))
        frozen.append(sum(rest))
    share = [1 - (1 - (n - 2) / 10) ** 3 for n in (4, 6, 8, 10, 12)]
    assert [frozen[n - 1] for n in (4, 6, 8, 10, 12)] == [int(len(matrices) * r) for r in share]
    assert set(frozen[11:]) == {len(matrices)}


def test_aflora_scores_by_the_smoothed_mean_gradient_and_its_uncertainty(bases) -> None:
    """The matrices with the lowest scores rest first."""
    own: Any = training(bases, "aflora", set=("aflora.every=2", "aflora.first=0.1", "aflora.last=0.4")).parametrization
    matrices = [*own.A, *own.B]
    generator = torch.Generator().manual_seed(0)
    gradients = [
        [(k + 1) * torch.randn(m.shape, generator=generator) for k, m in enumerate(matrices)] for _ in range(4)
    ]
    for number, now in enumerate(gradients, 1):
        for matrix, gradient in zip(matrices, now, strict=True):
            matrix.grad = gradient.clone()
        own.before_step(Step(number, 20))
    scores = []
    for k in range(len(matrices)):
        mean = spread = torch.zeros(matrices[k].shape, dtype=torch.float64)
        for first in (0, 2):
            found = (gradients[first][k].double().abs() + gradients[first + 1][k].double().abs()) / 2
            mean = 0.85 * mean + 0.15 * found
            spread = 0.95 * spread + 0.05 * (found - mean).abs()
        scores.append(float((mean * spread).mean()))
    count = int(len(matrices) * (1 - 0.8**3))
    lowest = sorted(range(len(matrices)), key=scores.__getitem__)[:count]
    assert own.frozen.nonzero().flatten().tolist() == sorted(lowest)
    assert all((matrix.grad is None) == (k in lowest) for k, matrix in enumerate(matrices))


# ---------------------------------------------------------------------------------------------------------- sparse


def entries(own: Any) -> Tensor:
    return torch.cat([part.detach().flatten() for part in (*own.A, *own.B)])


@pytest.mark.parametrize("score", ["snip", "magnitude", "synflow", "random"])
def test_sparse_holds_its_share_of_zeros(bases, score: str) -> None:
    settings = (f"sparse.score={score}", "sparse.sparsity=0.6", "sparse.rounds=2", "sparse.first=0.5")
    trial = training(bases, "sparse", set=settings)
    own: Any = trial.parametrization
    optimizer, zeros = trial.optimizer(torch.optim.AdamW), {}
    for number in range(1, 13):
        trial.whole_step(optimizer, Step(number, 12))
        zeros[number] = int((entries(own) == 0).sum())
    count = len(entries(own))
    assert zeros[3] == count - round(0.4**0.5 * count)
    assert {zeros[n] for n in range(6, 13)} == {count - round(0.4 * count)}
    assert all(bool((b != 0).any()) for b in own.B)  # none is cut off


def test_sparse_keeps_what_the_loss_depends_on(bases) -> None:
    """snip: the sum over the steps of w times its gradient, by plain autograd."""
    trial = training(bases, "sparse", set=("sparse.first=0.3",))
    own: Any = trial.parametrization
    optimizer, expected = trial.optimizer(torch.optim.AdamW), torch.zeros(len(entries(own)))
    for number in range(1, 4):
        own.zero_grad()
        loss(trial.model).backward()
        gradients = torch.cat([part.grad.flatten() for part in (*own.A, *own.B)])
        expected += entries(own) * gradients
        trial.whole_step(optimizer, Step(number, 10))
    kept = expected.abs().argsort(descending=True)[: round(0.5 * len(expected))]
    assert set(own.kept.nonzero().flatten().tolist()) == set(kept.tolist())


def test_synflow_is_the_gradient_of_the_sum_of_all_paths(bases) -> None:
    own: Any = training(bases, "sparse", set=("sparse.score=synflow",)).parametrization
    with torch.no_grad():
        for b in own.B:
            b.normal_()
    expected = []
    sizes = [part.detach().abs().requires_grad_() for part in (*own.A, *own.B)]
    n = len(own.A)
    sum((sizes[n + k] @ sizes[k]).sum() for k in range(n)).backward()
    expected = [size * size.grad for size in sizes]
    close(own._scores(), torch.cat([part.flatten() for part in expected]))


# -------------------------------------------------------------------------------------------------------- roselora


def test_roselora_leaves_its_share_of_every_row_and_column(bases) -> None:
    trial = training(bases, "roselora", set=("roselora.kept=0.25",))
    trial.train(20)
    own: Any = trial.parametrization
    fold = own.fold()
    for k, site in enumerate(fold.A):
        a, b = own.A[k], own.B[k]
        assert set((a != 0).sum(1).tolist()) == {a.shape[1] - int(0.75 * a.shape[1])}
        assert set((b != 0).sum(0).tolist()) == {b.shape[0] - int(0.75 * b.shape[0])}
        assert float((fold.delta(site) == 0).float().mean()) >= 1 - R * 0.25**2


def test_roselora_keeps_what_the_loss_depends_on(bases) -> None:
    trial = training(bases, "roselora", set=("roselora.first=0", "roselora.last=0.5", "roselora.kept=0.1"))
    own: Any = trial.parametrization
    optimizer = trial.optimizer(torch.optim.AdamW)
    importance: dict[int, Tensor] = {}
    for number in range(1, 7):
        own.zero_grad()
        loss(trial.model).backward()
        for k, part in enumerate((*own.A, *own.B)):
            found = (part * part.grad).detach().double().abs()
            importance[k] = 0.8 * importance[k] + 0.2 * found if k in importance else found
        trial.whole_step(optimizer, Step(number, 12))
        share = 0.1 + 0.9 * (1 - number / 6) ** 3 if number > 1 else 1  # B was 0: nothing has an importance yet
        for k, part in enumerate((*own.A, *own.B)):
            rows, scores = (part, importance[k]) if k < len(own.A) else (part.T, importance[k].T)
            count = max(1, rows.shape[1] - int(rows.shape[1] * (1 - share)))
            assert set((rows == 0).sum(1).tolist()) == {rows.shape[1] - count if number > 1 else 0}
            for row, score in zip(rows, scores, strict=True):
                lowest = score.sort(descending=True).values[count - 1]
                assert bool((row[score < lowest * (1 - 1e-6)] == 0).all())
