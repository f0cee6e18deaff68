"""SLAO: one adapter, merged after every task (Qiao and Mahdavi 2025, arXiv 2512.23017).

Task i starts from what the task before trained, and its result is merged into one adapter, which is what is stored:

    A_i at first = Q_i^T,   Q_i R_i = A_(i-1)^T,     B_i at first = B_(i-1) as trained
    A = A_i,                B = B_merged + (s_i B_i - B_merged) / sqrt(i)

The merger `lorabank.compose.mergers.slao` does the last line to adapters that are in a bank. A is orthonormal at the
start, and B is recorded as it was trained, since the merged one is not where the next task begins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization
from lorabank.training.variants.wrapper import Wrapper

ROLE = "trained-b"


@dataclass(frozen=True)
class _SLAO(Strategy):
    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The start from the last task; what is stored is merged into what was."""
        if context.initial is None:
            return super().attach(context, parametrization)
        earlier, factors = context.objects[ROLE], parametrization.factors()
        trained = load_tensors(earlier[-1].data)
        with torch.no_grad():
            for site, A in factors.A.items():
                A.copy_(torch.linalg.qr(A.mT).Q.mT)
                factors.B[site].copy_(trained[site] / factors.scaling[site])
        merged = {site: s * context.initial.B[site] for site, s in context.initial.scaling.items()}
        return super().attach(context, Merged(parametrization, merged, 1 / math.sqrt(len(earlier) + 1)))

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """B as it was trained, with its scaling inside, by site."""
        factors = attached.parametrization.factors()
        named = {site: (s * factors.B[site]).detach().cpu().contiguous() for site, s in factors.scaling.items()}
        return {ROLE: save_tensors(named)}


class Merged(Wrapper):
    """A plain parametrization that is stored as its merge with an earlier one.

    Args:
        inner: What is trained.
        before: The merged B of all tasks before, with its scaling inside: site to ``[d_out, r]``.
        share: How far B goes from there to the trained one.
    """

    def __init__(self, inner: Parametrization, before: Mapping[str, Tensor], share: float) -> None:
        super().__init__(inner)
        self._before = before
        self._share = share

    @torch.no_grad()
    def fold(self) -> LoraFactors:
        """The trained A, and B between the merged one and the trained one."""
        factors = self.inner.fold()
        kept = {site: self._before[site].to(b) / factors.scaling[site] for site, b in factors.B.items()}
        return replace(factors, B={site: kept[site] + self._share * (b - kept[site]) for site, b in factors.B.items()})


SLAO = _SLAO(
    "slao",
    "continued",
    needs=(ROLE,),
    about="A single adapter is merged after every task, and each task starts from what the last one trained.",
    paper="SLAO, arXiv 2512.23017",
)
