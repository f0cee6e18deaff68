"""``compeft``: every adapter as signs and one number, then summed (ComPEFT, arXiv 2311.13171).

    tau_k' = alpha std(tau_k) sign(tau_k) on the top share ``density`` of tau_k by magnitude, 0 elsewhere
    delta W = sum_k w_k tau_k'

``std`` is that of the whole vector before the cut, as in the paper and in one of the two helpers of the official code.
A vector of n entries then is two bit masks and a number. What is stored here is smaller still: the adapters, from
which the signs are made again.

``space=delta`` takes tau as the delta weights: the result is then the same for any factors of one delta weight.
``space=factors`` takes A and s B as one vector, as the official code does; the result is a plain adapter. There the
entries of A, which are of the size of their start, crowd those of B out. The official code also turns the classifier's
head into signs; here heads stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.entrywise.entries import Vector, summed, task_vectors, trimmed
from lorabank.compose.mergers.refusals import check_plain
from lorabank.compose.mergers.weighted import Weighed
from lorabank.core.settings import setting


@dataclass(frozen=True)
class ComPEFT(Weighed):
    """The weighted sum of the adapters, each made ternary: a sign or 0 for each entry, and one scale."""

    paper = "arXiv 2311.13171"

    density: float = setting(
        0.2, "Share of each task's entries that keeps its sign, those of largest magnitude.", gt=0, le=1
    )
    alpha: float = setting(1.0, "Factor of the standard deviation; the paper tunes it on validation rows.", gt=0)
    space: Literal["delta", "factors"] = setting("delta", "What is made ternary: delta weights, or A and B.")

    def merge(self, sources: Sources) -> DenseDelta | LoraFactors:
        """Delta weights of full rank, or in ``space=factors`` one adapter."""
        weights = self.near(sources.tasks)
        if self.space == "delta":
            vectors = [ternary(vector, sources.modules, self.density, self.alpha) for vector in task_vectors(sources)]
            return DenseDelta(summed(sources.modules, vectors, [*weights.values()]))
        adapters = {task: sources.factors(task) for task in sources.tasks}
        check_plain(sources.tasks, list(adapters.values()), "space=factors takes A and B")
        made = {task: self._ternary_factors(factors) for task, factors in adapters.items()}
        stack = AdapterStack.build(made, dtype=torch.float64)
        return stack.combine(torch.tensor([weights[task] for task in made], dtype=torch.float64))

    def _ternary_factors(self, factors: LoraFactors) -> LoraFactors:
        both = {f"A:{module}": a for module, a in factors.A.items()}
        both |= {f"B:{module}": factors.scaled(module) for module in factors.B}
        vector = ternary(both.get, list(both), self.density, self.alpha)
        made = {name: entries for name in both if (entries := vector(name)) is not None}
        A = {module: made[f"A:{module}"] for module in factors.A}
        B = {module: made[f"B:{module}"] for module in factors.A}
        return LoraFactors(A, B, dict.fromkeys(A, 1.0))


def ternary(vector: Vector, names: list[str] | tuple[str, ...], density: float, alpha: float) -> Vector:
    """``alpha std(tau) sign(tau)`` on the largest entries of a vector."""
    parts = [part.double() for name in names if (part := vector(name)) is not None]
    count = sum(part.numel() for part in parts)
    mean = sum(float(part.sum()) for part in parts) / max(1, count)
    squares = sum(float((part - mean).square().sum()) for part in parts)
    size = alpha * (squares / max(1, count - 1)) ** 0.5
    largest = trimmed(vector, names, density)

    def of(name: str) -> Tensor | None:
        own = largest(name)
        return None if own is None else size * own.sign()

    return of
