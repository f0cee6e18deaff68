r"""Starts that take a part out of the weight: some components of a decomposition ``W = sum_i b_i a_i``.

The weight in memory is ``W - s B_0 A_0`` while the adapter is trained. Over the untouched W the adapter is
``s (B A - B_0 A_0) = s [B, -B_0] [A; A_0]`` exactly, of rank 2r (`Parametrization.fold`).

All tasks of a bank read the same W, so that two tasks with one start begin with the same rows of A, which no penalty
on the overlap can move apart. ``components = "next"`` gives each task the r components behind those that earlier
adapters took. It is in none of the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.training.starts.base import FactorStart

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext

NEXT = "next"
"""The value of ``components`` by which tasks take different ones."""


@dataclass(frozen=True)
class ComponentStart(FactorStart):
    """The adapter begins as r components of a decomposition, which are taken out of the frozen rest.

    Attributes:
        counted: What a matrix has as many of as components, for messages.
        components: `NEXT`, or a word of the start's own for those that its paper takes.
    """

    shifts: ClassVar[bool] = True
    counted: ClassVar[str] = "singular values"

    components: str = setting("leading", "Which components.")

    @property
    def smallest(self) -> bool:
        """Whether the components are counted from the smallest on."""
        return False

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """The weight has too few components."""
        skipped, there = self._skipped(r, number), min(site.d_out, site.d_in)
        if skipped + r <= there:
            return None
        return ConfigError(
            f"{site.name} has {there} {self.counted}, and the start needs those from {skipped + 1} to {skipped + r}",
            hint=f"--set components={type(self).components}, or lower --r" if skipped else "lower --r",
            unchanged="nothing was changed",
        )

    def block(self, site: Site, context: TrainContext) -> slice:
        """The task's components among all of the site, which are sorted from the largest to the smallest.

        Raises:
            ConfigError: See `refusal`.
        """
        r, there = context.config.r, min(site.d_out, site.d_in)
        if refusal := self.refusal(site, r, context.number):
            raise refusal
        skipped = self._skipped(r, context.number)
        return slice(there - skipped - r, there - skipped) if self.smallest else slice(skipped, skipped + r)

    def _skipped(self, r: int, number: int) -> int:
        """How many components earlier adapters took."""
        return r * number if self.components == NEXT else 0


def halves(U: Tensor, S: Tensor, V: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """A ``[r, d_in]`` and B ``[d_out, r]``, float32, with ``s B A = U diag(S) V``: each gets a root of the values.

    Args:
        U: ``[d_out, r]``.
        S: ``[r]``, not negative.
        V: ``[r, d_in]``.
        scaling: s.
    """
    half = (S / scaling).sqrt()
    return (half[:, None] * V).float(), (U * half).float()
