r"""COLA, chain of LoRA (arXiv 2401.04151): LoRA after LoRA, each for what those before it left.

    W <- W + s B A,    A <- kaiming,    B <- 0,    a new optimizer

at the end of each link of the chain (section 3 of the paper, after the Frank-Wolfe method). The stored adapter is the
concatenation of all links, of rank ``length * r``. Our reading of the paper, which trains every link for epochs of its
own: here the links share the epochs evenly, so that a chain costs what LoRA costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Variant
from lorabank.training.variants.windows import Restarted, rank_refusal

if TYPE_CHECKING:
    from lorabank.core.config import TrainConfig
    from lorabank.core.errors import ConfigError
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class Cola(Variant):
    """A chain of LoRAs: each is merged into the weight and the next begins, with a new optimizer."""

    paper: ClassVar[str | None] = "COLA, arXiv 2401.04151"
    moves: ClassVar[bool] = True

    length: int = setting(3, "Links of the chain; the adapter's rank is this many times --r.", ge=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Free factors that restart, with all of their optimizer."""
        return Restarted(start.begin(context), self.length)

    def unfit(self, config: TrainConfig) -> ConfigError | None:
        """The adapter's rank is above the limit."""
        return rank_refusal(self.length, config.r, "cola.length")

    def rank(self, r: int) -> int:
        """That of all links together."""
        return self.length * r
