"""The penalty alone, on the modules of SmolLM2-135M: value and gradient.

The L1 form against the published loop over pairs of names; the squared form
after many tasks against the squared form after fewer, once its Gram matrices stand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import new_adapter, random_stack, smollm2
from benchmarks.published import attach_published, published_penalty
from lorabank.algebra.stack import AdapterStack
from lorabank.models.bases.targets import find_targets
from lorabank.training.factor_groups import GroupedFactors
from lorabank.training.penalties.base import Penalty
from lorabank.training.penalties.frobenius import Frobenius
from lorabank.training.penalties.orthogonal import Orthogonal

EARLIER_TASKS = 15
LOOP_BAR = 1 / 8
FEW, MANY = 100, 500
MANY_BAR = 1.2
ROUNDS = 12


def measure() -> list[Result]:
    """Both forms."""
    model = smollm2()
    modules = list(find_targets(model, "all-linear", ()).names)
    earlier = random_stack(model, modules, EARLIER_TASKS)
    grouped = penalty_call(smollm2(), modules, earlier, Orthogonal())
    attach_published(model, modules, earlier)
    loop = compare(
        {"loop": lambda: published_penalty(model).backward(), "grouped": grouped}, baseline="loop", rounds=ROUNDS
    )
    what = f"penalty of {EARLIER_TASKS} earlier tasks, value and gradient, against a loop over pairs of names"
    return [from_comparison("penalty", what, loop["grouped"], LOOP_BAR), _frobenius()]


def _frobenius() -> Result:
    """One block of the model is enough: the cost is the same for each."""
    sizes = (576,) * 6 + (1536,)
    models = [nn.ModuleDict({f"m{k}": nn.Linear(d_in, 576) for k, d_in in enumerate(sizes)}) for _ in (FEW, MANY)]
    few, many = (
        penalty_call(model, list(model), random_stack(model, list(model), tasks), Frobenius())
        for model, tasks in zip(models, (FEW, MANY), strict=True)
    )
    found = compare({"few": few, "many": many}, baseline="few", rounds=4 * ROUNDS)["many"]
    return from_comparison("penalty", f"frobenius after {MANY} tasks, against {FEW}", found, MANY_BAR)


def penalty_call(model: nn.Module, modules: list[str], earlier: AdapterStack, penalty: Penalty) -> Callable[[], None]:
    """Value and gradient, for a new adapter on the model beside the earlier ones."""
    torch.manual_seed(3)
    groups = GroupedFactors(new_adapter(model, modules, 0.0).layers, earlier, with_basis=False)
    return lambda: penalty(groups()).backward()
