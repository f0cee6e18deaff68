"""The report of overlap and capacity after a training, on the modules of SmolLM2-135M: Gram matrices against SVDs.

The loop makes an SVD for each module, and two for each module and earlier adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import random_stack, smollm2
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.subspaces import row_space, subspace_overlap
from lorabank.models.bases.targets import find_targets
from lorabank.training.factor_groups import overlap_report

EARLIER_TASKS = 50
BLOCKS = 3
BAR = 0.17
ROUNDS = 5


def measure() -> list[Result]:
    """Some blocks of the model: every block costs the same."""
    model = smollm2()
    names = find_targets(model, "all-linear", ()).names
    modules = [name for name in names if int(name.split("layers.")[1].split(".")[0]) < BLOCKS]
    stack = random_stack(model, modules, EARLIER_TASKS + 1)
    earlier = stack.select(stack.names[:-1])
    new = {name: factors.A[factors.owner == EARLIER_TASKS] for name, factors in stack.modules.items()}
    factors = LoraFactors(new, {name: torch.zeros(1, len(a)) for name, a in new.items()}, dict.fromkeys(new, 1.0))
    found = compare(
        {"loop": lambda: _loop(new, earlier), "report": lambda: overlap_report(factors, earlier)},
        baseline="loop",
        rounds=ROUNDS,
        warmup=1,
    )["report"]
    what = f"overlap with {EARLIER_TASKS} tasks and capacity, {len(modules)} modules, against a loop of SVDs"
    return [from_comparison("overlap", what, found, BAR)]


def _loop(new: Mapping[str, Tensor], earlier: AdapterStack) -> tuple[list[float], list[float]]:
    overlaps, capacities = [], []
    for name, a in new.items():
        rows, owner = earlier.modules[name].A, earlier.modules[name].owner
        capacities.append(1 - len(row_space(torch.cat([a, rows]))) / a.shape[1])
        overlaps += [subspace_overlap(a, rows[owner == k]) for k in range(len(earlier.names))]
    return overlaps, capacities
