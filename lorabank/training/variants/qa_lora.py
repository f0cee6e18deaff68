r"""QA-LoRA (ICLR 2024, arXiv 2309.14717): A reads the means of groups of inputs, so the delta is constant in a group.

With groups of L neighbouring inputs, pool(x) ``[d_in / L]`` their means, and A ``[r, d_in / L]``,

    y = W x + s B A pool(x),    dW = s B (A (x) 1_L^T) / L

so each column of A stands L times in the stored factor, divided by L. A weight whose columns are quantised in groups
of L with zero points takes such a dW into its zero points without loss (section 3.3 of the paper).

A begins as the sums of the groups of the start's A, which for LoRA's start has the variance of a layer of d_in / L
inputs, as the authors draw it. All tasks' A lie in a space of d_in / L dimensions, so there is room for fewer tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, PastUse, Variant, between_tasks

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class QaLora(Variant):
    """A reads means of groups of inputs, so that the zero points of a quantised weight can take the adapter."""

    paper: ClassVar[str | None] = "QA-LoRA, arXiv 2309.14717"
    own_rows: ClassVar[str | None] = (
        "the strategy changes single columns of A, and the variant's are equal within a group"
    )

    group: int = setting(32, "Neighbouring inputs of a group (L), a divisor of the inputs of the weights.", ge=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A of the groups' means, and B.

        Raises:
            ConfigError: See `refusal`.
        """
        self.check_sites(context)
        begun, L = start.begin(context), self.group
        pooled = {site: a.view(len(a), -1, L).sum(-1) for site, a in begun.A.items()}
        return _Pooled(replace(begun, A=pooled), L)

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """The inputs of a weight are not a multiple of the group."""
        if site.d_in % self.group == 0:
            return None
        return ConfigError(
            f"{site.name} has {site.d_in} inputs, which is not a multiple of the group of {self.group}",
            hint="--set qa-lora.group=N, a divisor of it",
            unchanged="nothing was changed",
        )

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """A has a column for each group."""
        return r * (d_out + d_in // self.group)

    def refuses(self, strategy: PastUse, start: FactorStart) -> str | None:
        """All tasks share few directions."""
        if between_tasks(strategy.penalty):
            return "the strategy keeps A apart from the rows of earlier tasks, and here all tasks share few directions"
        return super().refuses(strategy, start)


class _Pooled(FreeFactors):
    def __init__(self, start: LoraFactors, group: int) -> None:
        super().__init__(start)
        self._group = group

    def factors(self) -> LoraFactors:
        """A with every column L times, divided by L, and B."""
        free = super().factors()
        A = {site: a.repeat_interleave(self._group, 1) / self._group for site, a in free.A.items()}
        return replace(free, A=A)
