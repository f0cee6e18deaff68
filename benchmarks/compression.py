"""The best adapter of rank 8 for a sum of four, and its error, against PEFT's ``add_weighted_adapter`` (``svd``)."""

from __future__ import annotations

import itertools

import torch

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import RANK, every_linear, minilm, random_stack, with_peft
from lorabank.algebra.compress import compress
from lorabank.algebra.stack import AdapterStack

ADAPTERS = 4
ROUNDS = 3
BAR, ERROR_BAR = 1 / 30, 1e-4


def measure() -> list[Result]:
    """MiniLM, every linear layer: the time of both, and the largest error against the SVD of the whole matrix."""
    model = minilm()
    modules = every_linear(model)
    stack = random_stack(model, modules, ADAPTERS)
    weights = torch.full((ADAPTERS,), 0.5)
    peft = with_peft(minilm(), modules, ADAPTERS)
    numbers = itertools.count()

    def theirs() -> None:
        name = f"sum-{next(numbers)}"
        peft.add_weighted_adapter(list(stack.names), weights.tolist(), name, combination_type="svd", svd_rank=RANK)
        peft.delete_adapter(name)

    forms = {"ours": lambda: compress(stack.combine(weights), RANK), "peft": theirs}
    ratio = compare(forms, baseline="peft", rounds=ROUNDS, warmup=1)["ours"]
    what = f"{ADAPTERS} adapters summed and cut to rank {RANK}"
    return [
        from_comparison("compression", f"{what}, against PEFT's svd", ratio, BAR),
        Result(
            "compression", f"{what}, largest relative error to the full SVD", _error(stack, weights), ERROR_BAR, "", {}
        ),
    ]


def _error(stack: AdapterStack, weights: torch.Tensor) -> float:
    cut = compress(stack.combine(weights), RANK).factors
    worst = 0.0
    for module, factors in stack.modules.items():
        u, s, vh = torch.linalg.svd(factors.delta(weights).double(), full_matrices=False)
        best = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
        worst = max(worst, float((cut.delta(module).double() - best).norm() / best.norm()))
    return worst
