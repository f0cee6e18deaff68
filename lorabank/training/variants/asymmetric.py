r"""Asymmetric LoRA (ICML 2024, arXiv 2402.16842): A has orthonormal rows that are fixed, B alone is trained.

    dW = s B Q,    Q Q^T = I

B begins at 0. ``rows = "random"`` draws Q uniformly among all matrices with orthonormal rows; ``"singular"`` takes the
leading right singular vectors of the untouched W, which are the same in every task. (The released code takes rows of
``V^T``'s transpose for the second, which are orthonormal and no singular vectors.)

As in LoRA-FA, one factor has to do the work of two; Q's rows have length 1, those of LoRA's A sqrt(1/3), so its own
default learning rate is 2e-3 where that of LoRA-FA is 4e-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Variant
from lorabank.training.variants.lora_fa import FixedRows

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class Asymmetric(Variant):
    """A has orthonormal rows that are fixed, B is trained."""

    paper: ClassVar[str | None] = "Asymmetry in low-rank adapters, arXiv 2402.16842"
    draws: ClassVar[bool] = True
    learning_rate: ClassVar[float | None] = 2e-3

    rows: Literal["random", "singular"] = setting(
        "random", "Rows of A: orthonormal at random, or the leading right singular vectors of the weight."
    )

    @property
    def same_rows(self) -> bool:
        """Singular vectors are those of the weight."""
        return self.rows == "singular"

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """More rows than can be orthonormal, or than the weight has singular vectors."""
        there = site.d_in if self.rows == "random" else min(site.d_out, site.d_in)
        if r <= there:
            return None
        what = "inputs" if self.rows == "random" else "singular vectors"
        return ConfigError(
            f"{site.name} has {there} {what}, and the variant needs {r}",
            hint="lower --r",
            unchanged="nothing was changed",
        )

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """B at 0 beside the fixed rows.

        Raises:
            ConfigError: See `refusal`.
        """
        self.check_sites(context)
        r, A, B = context.config.r, {}, {}
        for site in context.sites:
            A[site.name] = self._rows(site, r)
            B[site.name] = torch.zeros(site.d_out, r, device=site.device)
        return FixedRows(LoraFactors(A, B, dict.fromkeys(context.targets, context.scaling)))

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of B."""
        return r * d_out

    def _rows(self, site: Site, r: int) -> Tensor:
        if self.rows == "random":
            return nn.init.orthogonal_(torch.empty(r, site.d_in, device=site.device))
        rows: Tensor = torch.linalg.svd(site.weight(), full_matrices=False)[2][:r]
        return rows.contiguous()
