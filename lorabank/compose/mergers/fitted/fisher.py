"""``fisher``: the mean of the delta weights, each entry weighed by how much it matters (Fisher merging, 2111.09832).

    delta W = sum_k F_k * delta W_k / sum_k F_k        entry by entry, F_k >= floor

F_k is the diagonal Fisher information of task k in the weights of the adapted modules, over its kept rows, in the
state in which the task was learnt: of each row by itself, with labels drawn from the model
(`lorabank.models.facts.weight_fisher`). The base's weights cancel, so that what is merged are delta weights.

With ``normalised`` each F_k is divided by its norm over the whole model, so that a task whose loss is steep does not
decide all entries. The paper mentions it as an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.algebra.factors import DenseDelta
from lorabank.compose.mergers.base import Merger, Sources
from lorabank.compose.mergers.kept import KeptRows
from lorabank.core.settings import setting
from lorabank.core.states import Over
from lorabank.models.facts.weight_fisher import weight_fisher


@dataclass(frozen=True)
class Fisher(Merger):
    """The mean of the delta weights, each entry weighed by its Fisher information in the task."""

    paper = "Fisher merging, arXiv 2111.09832"
    fitted: ClassVar[bool] = True
    over: ClassVar[Over] = "states"

    rows: int = setting(32, "Maximum number of kept rows of each task.", ge=1)
    normalised: bool = setting(True, "Divide each task's information by its norm over the model.")
    floor: float = setting(1e-8, "Minimum information of an entry.", gt=0)

    def merge(self, sources: Sources) -> DenseDelta:
        """Delta weights of full rank."""
        kept = sources.kept.sample(self.rows)
        weighed: dict[str, Tensor] = {}
        total: dict[str, Tensor] = {}
        for task in sources.tasks:
            measure = partial(self._information, kept, task, sources.modules)
            own = kept.measure(task, sources.modules, measure)
            for module, factors in sources.stack.modules.items():
                delta, nothing = sources.delta(task, module), torch.zeros(len(factors.B), factors.A.shape[1])
                information = own.get(module, nothing).clamp(min=self.floor)
                part = information * (nothing if delta is None else delta.cpu())
                total[module] = total.get(module, nothing) + information
                weighed[module] = weighed.get(module, nothing) + part
        return DenseDelta({module: part / total[module] for module, part in weighed.items()})

    def _information(self, kept: KeptRows, task: str, modules: tuple[str, ...]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(kept.seed)
        with kept.own_state(task):
            found = weight_fisher(kept.runtime.base.model, modules, kept.predictions(task), generator)
        own = {module: part.cpu() for module, part in found.items()}
        norm = sum(float(part.double().square().sum()) for part in own.values()) ** 0.5
        return {module: part / norm for module, part in own.items()} if self.normalised and norm > 0 else own
