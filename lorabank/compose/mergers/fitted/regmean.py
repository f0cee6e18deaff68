"""``regmean``: the delta weights that are nearest to every task's on its own inputs (RegMean, arXiv 2212.09849).

    delta W = (sum_k delta W_k G_k) (sum_k G_k)^-1

is the minimum of ``sum_k || (delta W - delta W_k) X_k ||^2`` with ``G_k = X_k X_k^T``, X_k what task k feeds into the
module over its kept rows, in the state in which it was learnt (`lorabank.models.facts.inputs`); the base's weights
cancel. Every G_k is divided by its trace, so that long texts do not decide, and its entries off the diagonal are
multiplied by ``off_diagonal``: the Gram matrix of few rows has not full rank. The paper has 0.9 for encoders and 0.1
for some T5, and no traces.

Over low ranks the result is one, ``B = [B_1 ... B_T]`` and ``A_k <- A_k G_k (sum G)^-1``: nothing dense is kept.
Members with row gains make it one of full rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.compose.mergers.base import Merger, Sources
from lorabank.compose.mergers.kept import KeptRows
from lorabank.core.settings import setting
from lorabank.core.states import Over
from lorabank.models.facts.inputs import InputCovariance, collect_inputs


@dataclass(frozen=True)
class RegMean(Merger):
    """The least-squares fit to what every adapter does to its own task's inputs."""

    paper = "arXiv 2212.09849"
    fitted: ClassVar[bool] = True
    over: ClassVar[Over] = "states"

    rows: int = setting(64, "Maximum number of kept rows of each task.", ge=1)
    off_diagonal: float = setting(0.9, "Factor of the entries off the diagonal of each Gram matrix.", ge=0, lt=1)

    def merge(self, sources: Sources) -> LoraFactors | DenseDelta:
        """One adapter of the rank that all have together; delta weights of full rank where one has a row gain."""
        kept = sources.kept.sample(self.rows)
        inputs = {}
        for task in sources.tasks:
            inputs[task] = kept.measure(task, sources.modules, partial(_inputs, kept, task, sources.modules))
        adapters = {task: sources.factors(task) for task in sources.tasks}
        gained = any(factors.gain for factors in adapters.values())
        A: dict[str, Tensor] = {}
        B: dict[str, Tensor] = {}
        dense: dict[str, Tensor] = {}
        for module, stacked in sources.stack.modules.items():
            grams = {task: self._gram(inputs[task], module, stacked.A.shape[1]) for task in sources.tasks}
            total = torch.stack([*grams.values()]).sum(0)
            own = [task for task in sources.tasks if module in adapters[task].A]
            if gained:
                deltas = [(task, adapters[task].delta(module, sources.weight(module))) for task in own]
                dense[module] = _right(torch.stack([delta @ grams[task] for task, delta in deltas]).sum(0), total)
            else:
                A[module] = _right(torch.cat([adapters[task].A[module] @ grams[task] for task in own]), total)
                B[module] = torch.cat([adapters[task].scaled(module) for task in own], 1)
        return DenseDelta(dense) if gained else LoraFactors(A, B, dict.fromkeys(A, 1.0))

    def _gram(self, inputs: InputCovariance, module: str, d_in: int) -> Tensor:
        """``[d_in, d_in]`` float64 with trace 1; 0 where no row reached the module."""
        if module not in inputs.shared:
            return torch.zeros(d_in, d_in, dtype=torch.float64)
        gram = inputs.of(module).double()
        gram = self.off_diagonal * gram + (1 - self.off_diagonal) * gram.diag().diag()
        return gram / gram.trace().clamp(min=1e-300)


def _inputs(kept: KeptRows, task: str, modules: tuple[str, ...]) -> InputCovariance:
    """What a task feeds into its modules, row by row: nothing is padded, every token counts."""
    with kept.own_state(task):
        rows: Iterator[dict[str, Tensor]] = ({} for _ in kept.members[task].texts)
        passes = kept.predictions(task)
        return collect_inputs(kept.runtime.base.model, modules, rows, lambda model, row: next(passes)())


def _right(rows: Tensor, gram: Tensor) -> Tensor:
    """``rows gram^-1``; directions that no task has ever fed give 0."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
        return rows @ inverse
    solved: Tensor = torch.cholesky_solve(rows.T, factor)
    return solved.T
