r"""PiSSA (NeurIPS 2024, arXiv 2404.02948): the adapter begins as the principal part of the weight.

With ``W = U S V^T`` and the r largest singular values,

    A = sqrt(S_r / s) V_r^T,    B = U_r sqrt(S_r / s),    W_res = W - s B A

so that ``W_res + s B A = W``; W_res is in memory while the adapter is trained (`lorabank.training.starts.components`).
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
class PiSSA(ComponentStart):
    """The adapter begins as the principal part of the weight, and the frozen weight keeps the rest."""

    paper: ClassVar[str | None] = "PiSSA, arXiv 2404.02948"

    components: Literal["leading", "next"] = setting(
        "leading", "Singular triplets: the leading r, or the r behind those of earlier tasks (keeps tasks apart)."
    )

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """Halves of r singular triplets of the untouched weight.

        Raises:
            ConfigError: See `refusal`.
        """
        taken = self.block(site, context)
        U, S, V = torch.linalg.svd(site.weight(), full_matrices=False)
        return halves(U[:, taken], S[taken], V[taken], context.scaling)
