"""What training made, as it is stored: checked, in float32, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, equal, isfinite

from lorabank.algebra.factors import LoraFactors
from lorabank.core.commands import Command
from lorabank.core.errors import DivergedError
from lorabank.models.bases.sites import Site
from lorabank.models.tuners.state import TunerState
from lorabank.training.layers.movement import unmoved


def still_factors(factors: LoraFactors, scaling: float) -> LoraFactors:
    """Trained factors as they are stored: float32, on the CPU, with the scaling of the settings.

    B takes up the difference where they were trained with another one.
    """
    A, B, gain = (
        {site: still(tensor) for site, tensor in part.items()} for part in (factors.A, factors.B, factors.gain)
    )
    B |= {site: (s / scaling) * B[site] for site, s in factors.scaling.items() if s != scaling}
    return LoraFactors(A, B, dict.fromkeys(A, scaling), gain)


def still(tensor: Tensor) -> Tensor:
    """A copy in float32 on the CPU."""
    return tensor.detach().float().cpu().contiguous().clone()


def check_finite(factors: LoraFactors, head: Mapping[str, Tensor]) -> None:
    """Refuse what training made and is not finite.

    Raises:
        DivergedError: Naming the tensor.
    """
    trained = {f"lora_A of {site}": tensor for site, tensor in factors.A.items()} | dict(head)
    trained |= {f"lora_B of {site}": tensor for site, tensor in factors.B.items()}
    trained |= {f"the row gain of {site}": tensor for site, tensor in factors.gain.items()}
    for name, tensor in trained.items():
        if not bool(isfinite(tensor).all()):
            raise DivergedError(
                f"training diverged: {name} is not finite",
                unchanged="the adapter was not added to the bank",
                hint="lower --learning-rate",
            )


def check_left(factors: LoraFactors, variant: str) -> None:
    """Refuse an adapter of which nothing is left.

    Raises:
        DivergedError: Every component was pruned.
    """
    if not factors.A:
        raise DivergedError(
            f"variant {variant!r} pruned every component: the adapter changes nothing",
            unchanged="the adapter was not added to the bank",
            hint="make it prune less with --set",
            commands=[Command("methods", variant)],
        )


def check_trained(before: TunerState, after: TunerState, steps: int, learning_rate: float) -> None:
    """Refuse an adapter without factors that is not finite, or that is what it was before the first step.

    Raises:
        DivergedError: It is.
    """
    check_finite(LoraFactors({}, {}, {}), after.tensors)
    if all(equal(after.tensors[name], tensor) for name, tensor in before.tensors.items()):
        raise unmoved(steps, learning_rate)


def ranks_by_module(factors: LoraFactors, sites: Sequence[Site]) -> dict[str, Any]:
    """The rank of every site, 0 where nothing is left of it; nothing where all have the same."""
    ranks = {site.name: len(factors.A[site.name]) if site.name in factors.A else 0 for site in sites}
    return {"rank_by_module": ranks} if len(set(ranks.values())) > 1 else {}
