"""xgblora: one booster after another, in float64, against its published update."""

from __future__ import annotations

from typing import Any

import torch

from tests.unit.training.variants.test_windows import RATE, Dense, R, Run, same


def test_xgblora_trains_one_booster_after_another() -> None:
    """On all layers: two rounds of six steps, each with an optimizer of its own."""
    run = Run("xgblora", 12, layers=1.0)
    dense = Dense(run)
    pairs = list(zip(dense.A, dense.B, strict=True))
    boosters = [[(a[k : k + 1].clone(), b[:, k : k + 1].clone()) for a, b in pairs] for k in range(R)]
    optimizers = [
        torch.optim.AdamW([t.requires_grad_() for pair in one for t in pair], lr=RATE, weight_decay=0.0)
        for one in boosters
    ]

    def follow(number: int) -> None:
        one = (number - 1) // 6
        dense.A, dense.B = ([pair[part] for pair in boosters[one]] for part in (0, 1))
        optimizers[one].zero_grad()
        dense.loss(number).backward()
        optimizers[one].step()
        if number == 6:
            dense.merge()

    run.train(follow)
    for found, expected in zip(run.delta(), dense.delta(), strict=True):
        same(found, expected, 1e-9)


def test_a_round_of_xgblora_trains_a_part_of_the_layers() -> None:
    run = Run("xgblora", 12, layers=0.5)
    before: dict[int, Any] = {}

    def keep(number: int) -> None:
        before[number] = [b.detach().clone() for b in run.parametrization.factors().B.values()]

    run.train(keep)
    for first, last in ((1, 6), (7, 12)):
        moved = [not torch.equal(a, b) for a, b in zip(before[first], before[last], strict=True)]
        assert sum(moved) == 2  # of three, half rounded up
        column = (first - 1) // 6
        for old, new in zip(before[first], before[last], strict=True):
            assert torch.equal(old[:, 1 - column], new[:, 1 - column])
    fold = run.parametrization.fold()
    assert sum(len(a) for a in fold.A.values()) == 2 * R  # two layers in each of the rounds
