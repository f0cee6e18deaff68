r"""PiSSA (NeurIPS 2024, arXiv 2404.02948): the adapter begins as the principal part of the weight.

With ``W = U S V^T`` and the r largest singular values,

    A = sqrt(S_r / s) V_r^T,    B = U_r sqrt(S_r / s),    W_res = W - s B A

so that ``W_res + s B A = W``. The weight in memory is W_res while the adapter is trained; over the untouched W it is

    s (B A - B_0 A_0) = s [B, -B_0] [A; A_0]

exactly, of rank 2r, which is what the bank stores.

Under O-LoRA's penalty the rows of A begin where every other task with this start began. ``components = "next"`` takes
the singular triplets behind those that earlier adapters took, r for each; it is not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.training.starts.base import FactorStart

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class PiSSA(FactorStart):
    """The adapter begins as the principal part of the weight, which is taken out of the frozen rest."""

    paper: ClassVar[str | None] = "PiSSA, arXiv 2404.02948"
    shifts: ClassVar[bool] = True

    components: Literal["leading", "next"] = setting(
        "leading", "Singular triplets: the leading r, or the r behind those of earlier tasks (keeps tasks apart)."
    )

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """The weight has too few singular values."""
        skipped, there = self._skipped(r, number), min(site.d_out, site.d_in)
        if skipped + r <= there:
            return None
        return ConfigError(
            f"{site.name} has {there} singular values, and the start needs those from {skipped + 1} to {skipped + r}",
            hint="lower --r" if not skipped else "--set pissa.components=leading, or lower --r",
            unchanged="nothing was changed",
        )

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """Halves of r singular triplets of the untouched weight.

        Raises:
            ConfigError: See `refusal`.
        """
        r, skipped = context.config.r, self._skipped(context.config.r, context.number)
        if refusal := self.refusal(site, r, context.number):
            raise refusal
        U, S, V = torch.linalg.svd(site.weight(), full_matrices=False)
        taken = slice(skipped, skipped + r)
        half = (S[taken] / context.scaling).sqrt()
        return half[:, None] * V[taken], U[:, taken] * half

    def _skipped(self, r: int, number: int) -> int:
        return r * number if self.components == "next" else 0
