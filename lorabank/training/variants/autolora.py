r"""AutoLoRA (NAACL 2024, arXiv 2403.09113): the rank of every module is searched, then the adapter trained anew.

    search    ΔW = s B diag(α) A,    α = softmax(a) over the components of a module,    a = 0 at the start
    then      r_m = number of components with α_i ≥ 1 / r,    ΔW = (lora_alpha / r_m) B_m A_m from the start

The search is bi-level: A and B follow the loss on one part of the data, a on another. The paper and the released
script for GLUE unroll one step of A and B in the gradient of a, and move a once for each step of A and B. Ours take
first-order steps in turn: every ``every``-th batch moves a alone, and rests A and B. ``every`` and ``ratio`` are ours.

The script's search rows are a fixed 30 %, and ours are disjoint in each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant

if TYPE_CHECKING:
    from lorabank.core.config import TrainConfig
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class AutoLora(Variant):
    """The first steps find which components of each module help; the others train those alone, from the start."""

    paper: ClassVar[str | None] = "AutoLoRA, arXiv 2403.09113"
    prunes: ClassVar[bool] = True

    search: float = setting(0.5, "Share of the steps that search the ranks; A and B begin anew then.", gt=0, lt=1)
    every: int = setting(3, "One batch of so many moves the selection, and the others A and B.", ge=2)
    ratio: float = setting(10.0, "Ratio of the selection's learning rate to that of A and B.", gt=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B where the start begins, all components selected alike."""
        return Selected(start.begin(context), self, context.config)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of LoRA and the selection."""
        return super().parameters(d_out, d_in, r) + r


class Selected(FreeFactors):
    """A, B and a.

    Args:
        start: A and B by site.
        settings: Those of the variant.
        config: Gives the scaling of the ranks that are found.
    """

    kept: Tensor
    found: Tensor

    def __init__(self, start: LoraFactors, settings: AutoLora, config: TrainConfig) -> None:
        super().__init__(start)
        self._settings = settings
        self._config = config
        self._begun = [part.detach().clone() for part in (*self.A, *self.B)]  # a resumed training draws them again
        self._optimizer: torch.optim.Optimizer | None = None
        self.a = nn.ParameterList(part.new_zeros(len(part)) for part in start.A.values())
        self.register_buffer("kept", torch.ones(sum(len(a) for a in self.a), dtype=torch.bool))
        self.register_buffer("found", torch.tensor(False))

    @property
    def prunes(self) -> bool:
        """What is not selected is left out."""
        return True

    def factors(self) -> LoraFactors:
        """A, and B with its columns weighed."""
        free = super().factors()
        weights = self._found() if bool(self.found) else [a.softmax(0) for a in self.a]
        return replace(free, B={site: b * w for (site, b), w in zip(free.B.items(), weights, strict=True)})

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The selection apart, without weight decay."""
        rate = self._settings.ratio * learning_rate
        return [{"params": list(self.a.parameters()), "lr": rate, "weight_decay": 0.0}]

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Know the optimizer, which begins anew after the search."""
        self._optimizer = optimizer

    def before_step(self, step: Step) -> None:
        """Rest what is not the batch's."""
        if bool(self.found):
            return
        selects = step.number % self._settings.every == 0
        for part in (*self.A, *self.B) if selects else self.a:
            part.grad = None

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Decide, once, and begin anew."""
        if bool(self.found) or step.number < max(1, int(self._settings.search * step.total)):
            return
        self.kept.copy_(torch.cat([a.softmax(0) >= 1 / len(a) - 1e-7 for a in self.a]))
        self.found.fill_(True)
        for part, begun in zip((*self.A, *self.B), self._begun, strict=True):
            part.copy_(begun)
            if self._optimizer is not None:
                self._optimizer.state.pop(part, None)

    def _found(self) -> list[Tensor]:
        """``s_m / s`` for the components of every site that were selected, and 0 for the others."""
        config, found = self._config, []
        for kept, a in zip(self.kept.split([len(a) for a in self.a]), self.a, strict=True):
            ranks = (int(kept.sum()), len(a))
            own, full = (lora_scaling(r, config.lora_alpha, use_rslora=config.use_rslora) for r in ranks)
            found.append(kept.to(a) * (own / full))
        return found
