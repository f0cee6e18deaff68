r"""LoRA-drop (COLING 2025, arXiv 2402.07721): modules whose adapters say little share one adapter.

The first share of the steps trains LoRA as it is. Over the second half of them, of every module i,

    g_i = mean over the tokens of ‖s B_i A_i x_i‖²,    I_i = g_i / Σ_j g_j

and the modules with the highest I keep an adapter of their own until their I add up to the threshold. All others share
one. Then the training begins anew, from the same start, with a new optimizer state.

It is our reading of the paper: it samples a tenth of the rows and trains on them first, where ours takes a tenth of
the steps; and the sum over j, and what can be shared, is over the modules of one shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lorabank.algebra.factors import LoraFactors
from lorabank.core.machine import distributed as processes
from lorabank.core.settings import setting
from lorabank.models.bases.sites import kind_of, wrapped_by
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class LoraDrop(Variant):
    """LoRA in which the modules with the smallest outputs share their factors."""

    paper: ClassVar[str | None] = "LoRA-drop, arXiv 2402.07721"
    watches: ClassVar[bool] = True
    own_rows: ClassVar[str | None] = "the strategy makes A anew for each module, and here modules share one"

    threshold: float = setting(0.9, "Share of all outputs that is of modules with factors of their own.", gt=0, le=1)
    sample: float = setting(0.1, "Share of the steps after which that is decided, and all begin anew.", gt=0, lt=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B where the start begins, each module with its own."""
        return Tied(start.begin(context), self)


class Tied(FreeFactors):
    """A and B, of which some are shared later.

    Args:
        start: A and B by site.
        settings: Those of the variant.
    """

    owner: Tensor
    outputs: Tensor

    def __init__(self, start: LoraFactors, settings: LoraDrop) -> None:
        super().__init__(start)
        self._settings = settings
        self._begun = [part.detach().clone() for part in (*self.A, *self.B)]  # a resumed training draws them again
        self._read: dict[str, Tensor] = {}
        self._deciding = False
        self._optimizer: torch.optim.Optimizer | None = None
        self.register_buffer("owner", torch.arange(len(self.A)))
        self.register_buffer("outputs", torch.zeros(2, len(self.A), dtype=torch.float64))

    def factors(self) -> LoraFactors:
        """Of every site those of its owner, which is the site itself at first."""
        free, owner = super().factors(), self.owner.tolist()
        A = {site: self.A[k].view_as(self.A[k]) for site, k in zip(free.A, owner, strict=True)}
        B = {site: self.B[k].view_as(self.B[k]) for site, k in zip(free.B, owner, strict=True)}
        return replace(free, A=A, B=B)

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """Watch the layers."""
        for site, layer in layers.items():
            layer.register_forward_pre_hook(self._seeing(site))

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Watch, where the step that comes counts."""
        self._optimizer = optimizer
        self._look(step)

    @torch.no_grad()
    def after_loss(self, step: Step) -> None:
        """Take the outputs of this step, over all processes."""
        if self._deciding:
            none = torch.zeros(2, dtype=torch.float64, device=self.outputs.device)
            read = torch.stack([self._read.pop(site, none) for site in self._scaling], dim=1)
            self.outputs += processes.count() * processes.averaged(read)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Decide who shares, once."""
        if step.number == self._decided(step):
            self._decide()
            for part, begun in zip((*self.A, *self.B), self._begun, strict=True):
                part.copy_(begun)
                if self._optimizer is not None:
                    self._optimizer.state.pop(part, None)
        self._look(step._replace(number=step.number + 1))

    def _decided(self, step: Step) -> int:
        return max(2, int(self._settings.sample * step.total))

    def _look(self, step: Step) -> None:
        """Whether the outputs of a step count."""
        end = self._decided(step)
        self._deciding = end // 2 < step.number <= end

    def _decide(self) -> None:
        squares, tokens = self.outputs
        mean = squares / tokens.clamp_min(1)
        groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
        for k, (a, b) in enumerate(zip(self.A, self.B, strict=True)):
            groups.setdefault((a.shape, b.shape), []).append(k)
        for group in groups.values():
            shares = mean[group] / mean[group].sum().clamp_min(1e-300)
            order = shares.argsort(descending=True, stable=True)
            before = shares[order].cumsum(0) - shares[order]
            others = sorted(group[k] for k in order[before >= self._settings.threshold].tolist())
            self.owner[others] = others[0] if others else 0

    def _seeing(self, site: str) -> Any:
        def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._deciding and torch.is_grad_enabled():  # passes without gradients are of no step
                self._look_at(site, layer, inputs[0])

        return see

    @torch.no_grad()
    def _look_at(self, site: str, layer: nn.Module, x: Tensor) -> None:
        A, B, kind = layer.get_parameter("lora_A"), layer.get_parameter("lora_B"), kind_of(layer)
        x = x if kind is not None and kind.indexed else x.to(A.dtype)
        h = linear(x, A) if kind is None else kind.down(wrapped_by(layer), x, A, 0.0)
        seen = (self._scaling[site] * linear(h, B)).double().square().sum()
        found = torch.stack([seen, torch.full_like(seen, h.numel() // h.shape[-1])])
        self._read[site] = self._read[site] + found if site in self._read else found
