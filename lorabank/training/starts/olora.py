r"""OLoRA (arXiv 2406.01775): the adapter begins as the first columns of a QR decomposition of the weight.

It shares no more than the name with O-LoRA, the strategy: here "orthonormal" is said of B. With ``W = Q R``,

    A = R[:r],    B = Q[:, :r],    W_res = W - s B A

B has orthonormal columns, and no singular value decomposition is needed. As in the paper's code and in PEFT the
factors are not divided by s, so that with ``s != 1`` what is taken out is s times that part of W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.training.starts.components import ComponentStart

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class OLoRA(ComponentStart):
    """B begins as orthonormal columns of the weight's QR decomposition, A as the rows that belong to them."""

    paper: ClassVar[str | None] = "OLoRA, arXiv 2406.01775"
    counted: ClassVar[str] = "columns in its QR decomposition"

    components: Literal["leading", "next"] = setting(
        "leading", "Columns of Q: the first r, or the r behind those of earlier tasks."
    )

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """Rows of R and columns of Q of the untouched weight.

        Raises:
            ConfigError: See `refusal`.
        """
        taken = self.block(site, context)
        Q, R = torch.linalg.qr(site.weight())
        return R[taken].contiguous(), Q[:, taken].contiguous()
