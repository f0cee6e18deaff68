r"""DyLoRA (EACL 2023, arXiv 2210.07558): every step trains a lower rank, so that one adapter serves all ranks.

Each optimizer step draws a rank b uniformly from ``smallest`` to r and trains the first b components alone,

    ΔW = (lora_alpha / b) B[:, :b] A[:b]

with ``frozen`` only the b-th of them gets gradients. What is stored is the adapter at one rank; at any lower rank it
is its first rows of A and columns of B, under the same equation. With rsLoRA ``√b`` stands for b.

The released code scales A and B by ``√(r/b)`` each; the product, and both gradients, are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant

if TYPE_CHECKING:
    from lorabank.core.config import TrainConfig
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class DyLora(Variant):
    """The components are ordered: each step trains only the first few, as many as it draws."""

    paper: ClassVar[str | None] = "DyLoRA, arXiv 2210.07558"
    prunes: ClassVar[bool] = True

    smallest: int = setting(1, "The lowest rank that is drawn; --r where that is lower.", ge=1)
    frozen: bool = setting(False, "Whether the components before the last one drawn rest in a step.")
    stored: int = setting(0, "Rank that is stored, --r at most; 0 for --r.", ge=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B where the start begins, at the first rank drawn."""
        return Nested(start.begin(context), self, context.config, context.number)


class Nested(FreeFactors):
    """A and B at the rank that was drawn.

    Args:
        start: A and B by site.
        settings: Those of the variant.
        config: Gives the full rank, the scaling and the seed.
        number: How many adapters the bank was given before.
    """

    drawn: Tensor

    def __init__(self, start: LoraFactors, settings: DyLora, config: TrainConfig, number: int) -> None:
        super().__init__(start)
        self._settings = settings
        self._config = config
        self._seed = config.seed * 1_000_003 + number
        self.register_buffer("drawn", torch.tensor(self._draw(1)))

    @property
    def prunes(self) -> bool:
        """The components behind the stored rank are left out."""
        return True

    def factors(self) -> LoraFactors:
        """The first components, scaled for their number."""
        b, free = int(self.drawn), super().factors()
        ratio = self._scaling_of(b) / self._scaling_of(self._config.r)
        if self._settings.frozen:
            A = {site: _resting(a, b, 0) for site, a in free.A.items()}
            free = replace(free, A=A, B={site: _resting(column, b, 1) for site, column in free.B.items()})
        return replace(free, B={site: _first(column, b, ratio) for site, column in free.B.items()})

    def after_step(self, step: Step) -> None:
        """Draw the rank of the next step; after the last one it is that of the stored adapter."""
        whole = min(self._settings.stored or self._config.r, self._config.r)
        self.drawn.fill_(whole if step.number == step.total else self._draw(step.number + 1))

    def _draw(self, number: int) -> int:
        """The rank of a step, the same in every process and after a resumption."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + number) % 2**63)
        smallest = min(self._settings.smallest, self._config.r)
        return int(torch.randint(smallest, self._config.r + 1, (), generator=generator))

    def _scaling_of(self, rank: int) -> float:
        return lora_scaling(rank, self._config.lora_alpha, use_rslora=self._config.use_rslora)


def _first(B: Tensor, b: int, ratio: float) -> Tensor:
    """The first b columns times the ratio, and 0 for the others."""
    return B * (ratio * (torch.arange(B.shape[1], device=B.device) < b))


def _resting(factor: Tensor, b: int, dim: int) -> Tensor:
    """The same values; only the b-th component has a gradient."""
    trained = torch.arange(factor.shape[dim], device=factor.device) == b - 1
    return torch.where(trained[:, None] if dim == 0 else trained, factor, factor.detach())
