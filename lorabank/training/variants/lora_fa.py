r"""LoRA-FA (arXiv 2308.03303): A stays as it was drawn, and B alone is trained.

    dW = s B A,    A fixed

A layer then keeps no input for A's gradient. With ``projected`` the gradient of B is the one that PEFT's optimizer of
this name takes,

    g~_B = g_B (A A^T)^-1 / s^2

for which ``s g~_B A`` is the closest matrix to the gradient of the whole weight in Frobenius norm. PEFT computes the
product in bfloat16 wherever that is available, on a CPU too; here it is float32.

At LoRA's learning rate it falls behind LoRA, and at four times that rate it equals LoRA: its own default is 4e-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, PastUse, Step, Variant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart

_DAMPING = 1e-8
"""What PEFT adds to the diagonal of ``A A^T`` before it is inverted."""


@dataclass(frozen=True)
class LoraFA(Variant):
    """A stays as the start draws it, B is trained."""

    paper: ClassVar[str | None] = "LoRA-FA, arXiv 2308.03303"
    learning_rate: ClassVar[float | None] = 4e-3

    projected: bool = setting(False, "Correct B's gradient by (A A^T)^-1 / s^2, as PEFT's optimizer does.")

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """B where the start begins."""
        begun = start.begin(context)
        return ProjectedB(begun) if self.projected else FixedRows(begun)

    def refuses(self, strategy: PastUse, start: FactorStart) -> str | None:
        """As of every variant; what is inverted must be the A of the layers."""
        if self.projected and strategy.confined:
            return "the strategy gives the layers another A than the one that projected=true inverts"
        return super().refuses(strategy, start)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of B."""
        return r * d_out


class FixedRows(FreeFactors):
    """B is trained; A is what it was.

    Args:
        start: Where both begin.
    """

    def __init__(self, start: LoraFactors) -> None:
        super().__init__(start)
        self.A.requires_grad_(False)


class ProjectedB(FixedRows):
    """B with the gradient that fits the whole weight's best.

    Args:
        start: Where both begin.
    """

    def __init__(self, start: LoraFactors) -> None:
        super().__init__(start)
        self._inverse = [_inverse(A) / s**2 for A, s in zip(self.A, start.scaling.values(), strict=True)]

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Correct the gradients, which are clipped already."""
        for B, inverse in zip(self.B, self._inverse, strict=True):
            if B.grad is not None:
                B.grad.copy_(B.grad @ inverse)


def _inverse(A: nn.Parameter) -> Tensor:
    rows = A.detach()
    inverse: Tensor = torch.linalg.pinv(rows @ rows.mT + _DAMPING * torch.eye(len(rows), device=rows.device))
    return inverse
