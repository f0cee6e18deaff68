r"""BitFit (ACL 2022, arXiv 2106.10199): the biases are trained, and nothing else.

    y = W x + b + beta,    beta = 0 at the start

for the biases of linear layers and of layer norms. A bias is a matrix of one column that reads the constant 1
(`lorabank.models.bases.kinds.bias`), so that the adapter of one is ``B = beta [d_out, 1]`` and ``A = 1 [1, 1]``.

By default every bias of the body is trained, as in the paper, whose smaller set of queries and first feed-forward
layers is ``--target-modules query,intermediate.dense`` on BERT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.training.variants.base import Parametrization, PastUse, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class BitFit(Variant):
    """The biases of linear layers and layer norms are trained, and nothing else."""

    paper: ClassVar[str | None] = "BitFit, arXiv 2106.10199"
    biases: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    learning_rate: ClassVar[float | None] = 1e-3
    own_rows: ClassVar[str | None] = "the strategy chooses what the new adapter reads, and a bias reads no input"

    @property
    def same_rows(self) -> bool:
        """The constant, in every task."""
        return True

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Changes of 0."""
        return _Biases(context.sites)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Each bias."""
        return d_out

    def rank(self, r: int) -> int:
        """A column."""
        return 1

    def refuses_saving(self, *, partial: bool) -> str | None:
        """One that leaves branches out looks for adapted weights in them."""
        if partial:
            return "the saving finds what it may leave out by the weights that are adapted, and here none is"
        return super().refuses_saving(partial=partial)

    def refuses(self, strategy: PastUse, start: FactorStart) -> str | None:
        """Attention over adapters scores what a module reads, too."""
        if strategy.earlier == "attended":
            return "the attention scores what a module reads, and a bias reads no input"
        return super().refuses(strategy, start)


class _Biases(Parametrization):
    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self._A = {site.name: torch.ones(1, 1, device=site.device) for site in sites}
        self.beta = nn.ParameterList(torch.zeros(site.d_out, 1, device=site.device) for site in sites)

    @property
    def drops_inputs(self) -> bool:
        """There are none."""
        return False

    def factors(self) -> LoraFactors:
        """The changes as columns."""
        return LoraFactors(self._A, dict(zip(self._A, self.beta, strict=True)), dict.fromkeys(self._A, 1.0))
