r"""LoRA-XS (arXiv 2405.17604): a small matrix is trained between fixed factors, singular vectors of the weight.

    W = U S V^T,    dW = s U_r R S_r V_r^T,    R [r, r]

so that a site trains r^2 numbers, whatever its size. The singular values stand on the side of A, ``A = S_r V_r^T`` and
``B = U_r R``, as in the released code. R begins at 0; the code draws it from N(0, 1e-5^2), which begins away from the
base by as much. The decomposition is exact, the code's is randomised with 10 iterations.

A is the same in every task, so strategies that keep the tasks' rows apart refuse it. ``components = "next"`` takes the
singular triplets behind those that earlier tasks took, r for each, whose rows are orthogonal; it is not in the paper.
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

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class LoraXS(Variant):
    """A matrix of r by r numbers between fixed singular vectors of the weight."""

    paper: ClassVar[str | None] = "LoRA-XS, arXiv 2405.17604"
    draws: ClassVar[bool] = True

    components: Literal["leading", "next"] = setting(
        "leading", "Singular triplets: the leading r, or the r behind those of earlier tasks (keeps tasks apart)."
    )

    @property
    def same_rows(self) -> bool:
        """The leading singular vectors are those of the weight."""
        return self.components == "leading"

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """The weight has too few singular values."""
        skipped, there = self._skipped(r, number), min(site.d_out, site.d_in)
        if skipped + r <= there:
            return None
        return ConfigError(
            f"{site.name} has {there} singular values, and lora-xs needs those from {skipped + 1} to {skipped + r}",
            hint="lower --r" if not skipped else "--set lora-xs.components=leading, or lower --r",
            unchanged="nothing was changed",
        )

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Singular triplets of the untouched weights, and R at 0.

        Raises:
            ConfigError: See `refusal`.
        """
        self.check_sites(context)
        r, A, U = context.config.r, {}, {}
        skipped = self._skipped(r, context.number)
        taken = slice(skipped, skipped + r)
        for site in context.sites:
            left, S, right = torch.linalg.svd(site.weight(), full_matrices=False)
            A[site.name] = S[taken, None] * right[taken]
            U[site.name] = left[:, taken].contiguous()
        return _Between(A, U, context.scaling)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of R."""
        return r * r

    def _skipped(self, r: int, number: int) -> int:
        return r * number if self.components == "next" else 0


class _Between(Parametrization):
    def __init__(self, A: dict[str, Tensor], U: dict[str, Tensor], scaling: float) -> None:
        super().__init__()
        self._U, self._scaling = U, dict.fromkeys(A, scaling)
        self.A = nn.ParameterList(nn.Parameter(rows, requires_grad=False) for rows in A.values())
        self.R = nn.ParameterList(rows.new_zeros(len(rows), len(rows)) for rows in A.values())

    def factors(self) -> LoraFactors:
        """S_r V_r^T, and U_r R."""
        A = dict(zip(self._scaling, self.A, strict=True))
        B = {site: self._U[site] @ R for site, R in zip(self._scaling, self.R, strict=True)}
        return LoraFactors(A, B, self._scaling)
