r"""PRILoRA (Findings of EACL 2024, arXiv 2401.11316): ranks that grow with the depth, and a pruned A.

    r_l = round(r_first + (r_last − r_first) l / (L − 1)),    ΔW = s_l B A,    s_l = lora_alpha / r_l

where l counts the L transformer layers that are adapted, and ``r_first`` and ``r_last`` lie evenly around ``--r`` (the
paper: 4 and 12 in 12 layers, around 8). Every ``every`` steps, in each row of A, the entries with the lowest

    |A_ij| X̄_j,    X̄ ← β X̄ + (1 − β) ‖x_j‖₂ over the tokens since the last time

are set to 0, a share ``pruned`` of the row. They go on being trained, and may come back.

It is our reading of the paper, whose code is in no public repository: that the average is taken once for each pruning,
and that entries may come back, is what we understand by its words. A module outside of the layers has rank r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.core.machine import distributed as processes
from lorabank.core.settings import setting
from lorabank.models.bases.sites import kind_of, rows_of, wrapped_by
from lorabank.training.starts.kaiming import drawn
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class PRILora(Variant):
    """Deeper layers have higher ranks; the entries of A that matter least are set to 0 again and again."""

    paper: ClassVar[str | None] = "PRILoRA, arXiv 2401.11316"
    draws: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    watches: ClassVar[bool] = True
    own_rows: ClassVar[str | None] = "the strategy makes A anew from other directions, which would not be sparse"

    spread: float = setting(0.5, "How far the lowest and the highest rank lie from --r, as a share of it.", ge=0, lt=1)
    pruned: float = setting(0.5, "Share of every row of A that is set to 0.", ge=0, lt=1)
    every: int = setting(40, "Optimizer steps from one pruning to the next.", ge=1)
    beta: float = setting(0.9, "Share of the inputs' norms that is kept from one pruning to the next.", ge=0, lt=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """LoRA's A and B at the rank of their depth."""
        config = context.config
        A, B, scaling = {}, {}, {}
        for site, r in zip(context.sites, self._ranks(context.sites, config.r), strict=True):
            A[site.name], B[site.name] = drawn((site.d_out, site.d_in), r, site.device)
            scaling[site.name] = lora_scaling(r, config.lora_alpha, use_rslora=config.use_rslora)
        return Watched(LoraFactors(A, B, scaling), context.scaling, self)

    def rank(self, r: int) -> int:
        """The highest."""
        return round((1 + self.spread) * r)

    def trained(self, sites: Sequence[Site], r: int) -> int:
        """Those of LoRA at the ranks of their depths."""
        return sum(own * (s.d_out + s.d_in) for s, own in zip(sites, self._ranks(sites, r), strict=True))

    def _ranks(self, sites: Sequence[Site], r: int) -> list[int]:
        depths = sorted({site.depth for site in sites if site.depth is not None})
        last, low = max(len(depths) - 1, 1), (1 - self.spread) * r
        most = self.rank(r)  # a sum may be rounded to one more
        grown = {d: max(1, min(most, round(low + 2 * self.spread * r * k / last))) for k, d in enumerate(depths)}
        return [grown[site.depth] if len(depths) > 1 and site.depth is not None else r for site in sites]


class Watched(FreeFactors):
    """A and B, and the norms of what the layers read.

    Args:
        start: A and B by site, with the scaling that they are computed with.
        scaling: Of the stored adapter.
        settings: Those of the variant.
    """

    def __init__(self, start: LoraFactors, scaling: float, settings: PRILora) -> None:
        super().__init__(LoraFactors(start.A, start.B, dict.fromkeys(start.A, scaling)))
        self._settings = settings
        self._ratio = {site: own / scaling for site, own in start.scaling.items()}
        self._read: dict[str, Tensor] = {}
        for k, a in enumerate(self.A):
            self.register_buffer(f"squares_{k}", a.new_zeros(a.shape[1], requires_grad=False))
            self.register_buffer(f"norms_{k}", a.new_zeros(a.shape[1], requires_grad=False))

    def factors(self) -> LoraFactors:
        """A, and B for the scaling of its rank."""
        free = super().factors()
        return replace(free, B={site: self._ratio[site] * b for site, b in free.B.items()})

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """Watch the inputs of the layers."""
        for site, layer in layers.items():
            layer.register_forward_pre_hook(self._seeing(site))

    def after_loss(self, step: Step) -> None:
        """Take the squares of what was read in this step, over all processes."""
        read = [self._read.pop(site, None) for site in self._ratio]
        own = [self.get_buffer(f"squares_{k}") for k in range(len(read))]
        parts = [torch.zeros_like(o) if x is None else x for o, x in zip(own, read, strict=True)]
        seen = processes.count() * processes.averaged(torch.cat(parts))
        for squares, part in zip(own, seen.split([len(o) for o in own]), strict=True):
            squares += part

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Prune, where it is time."""
        if step.number % self._settings.every:
            return
        for k, a in enumerate(self.A):
            squares, norms = self.get_buffer(f"squares_{k}"), self.get_buffer(f"norms_{k}")
            norms.lerp_(squares.sqrt(), 1 - self._settings.beta)
            squares.zero_()
            lowest = (a.abs() * norms).argsort(dim=1, stable=True)[:, : int(self._settings.pruned * a.shape[1])]
            a.scatter_(1, lowest, 0.0)

    def _seeing(self, site: str) -> Any:
        def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                squares = _squares(layer, inputs[0].detach())
                self._read[site] = self._read[site] + squares if site in self._read else squares

        return see


def _squares(layer: nn.Module, x: Tensor) -> Tensor:
    """The sums of the squares of all rows that the matrix multiplies in an input, ``[d_in]``."""
    kind, rows = kind_of(layer), rows_of(layer, x).flatten(0, -2)
    if kind is None or not kind.indexed:
        return rows.float().square().sum(0)
    sparse = kind.inputs(wrapped_by(layer), rows).coalesce()
    return rows.new_zeros(sparse.shape[1], dtype=torch.float32).index_add_(
        0, sparse.indices()[1], sparse.values().float().square()
    )
