r"""MiLoRA (NAACL 2025, arXiv 2406.09044): the adapter begins as the minor part of the weight.

With ``W = U S V^T`` and the r smallest singular values,

    A = sqrt(S_r / s) V_r^T,    B = U_r sqrt(S_r / s),    W_res = W - s B A

so that what the large singular values hold of the pretraining stays frozen. Where the spectrum has a tail, both
factors begin close to zero and learn slowly at first. The decomposition is in float64: in float32 the smallest
singular values are rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.training.starts.components import ComponentStart, halves

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class MiLoRA(ComponentStart):
    """The adapter begins as the minor part of the weight, which is taken out of the frozen rest."""

    paper: ClassVar[str | None] = "MiLoRA, arXiv 2406.09044"

    components: Literal["trailing", "next"] = setting(
        "trailing", "Singular triplets: the last r, or the r before those of earlier tasks (keeps tasks apart)."
    )

    @property
    def smallest(self) -> bool:
        """They are."""
        return True

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """Halves of r singular triplets of the untouched weight.

        Raises:
            ConfigError: See `refusal`.
        """
        taken = self.block(site, context)
        U, S, V = torch.linalg.svd(site.weight().double(), full_matrices=False)
        return halves(U[:, taken], S[taken], V[taken], context.scaling)
