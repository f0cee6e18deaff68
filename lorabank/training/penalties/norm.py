"""The norm penalty of O-LoRA's reference implementation (arXiv 2310.14152, its ``lamda_2``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.training.penalties.base import FactorGroup, Penalty


class Norm(Penalty):
    """``sum_modules ||A_new||_2 + ||B_new||_2``: Frobenius norms, not squared; this is not weight decay."""

    name = "norm"
    default_weight = 0.0
    paper = "O-LoRA, arXiv 2310.14152"

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over the new adapter's factors of all modules."""
        norms = [
            torch.linalg.vector_norm(factor.float(), dim=(1, 2)).sum()
            for group in groups
            for factor in (group.A_new, group.B_new)
        ]
        return torch.stack(norms).sum()


@dataclass(frozen=True)
class WithNorm(Penalty):
    """A penalty of O-LoRA, which the norms may stand beside: its loss is CE + lambda_1 penalty + lambda_2 norms."""

    between_tasks = True

    lambda_l2: float = setting(0.0, "Weight of the norms of A and B beside it, lambda_2 of O-LoRA; 0 for none.", ge=0)

    def besides(self) -> Sequence[tuple[str, float, Penalty]]:
        """The norms, where they have a weight."""
        return [(Norm.name, self.lambda_l2, Norm())] if self.lambda_l2 > 0 else []
