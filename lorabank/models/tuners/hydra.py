r"""HydraLoRA (NeurIPS 2024, arXiv 2404.19245): one A, N matrices B, and a router that weighs these for every token.

    y = W x + b + s sum_i w_i B_i A x,    w = softmax(R x)    (equations 3 and 4 of the paper)

The weights depend on x, so no delta weight stands for such an adapter, and its task answers alone. All B lie side by
side in one matrix, so that one product computes their sum:

    sum_i w_i B_i h = [B_1 ... B_N] (w_1 h; ...; w_N h),    h = A x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.algebra.factors import lora_scaling
from lorabank.core.errors import DataError
from lorabank.models.tuners.state import TunerState

HYDRA = "HYDRALORA"
"""What the config of such an adapter says in the place of a ``PeftType``."""

_A, _B, _ROUTER = ".hydra_A", ".hydra_B", ".hydra_router"
"""Behind a site's name, its tensors' names."""


@dataclass(frozen=True)
class HydraFactors:
    """One site's part of an adapter.

    Attributes:
        A: ``[r, d_in]``.
        B: ``[d_out, N r]``; the columns ``i r`` to ``(i + 1) r`` are ``B_i``.
        router: ``[N, d_in]``.
        scaling: s.
    """

    A: Tensor
    B: Tensor
    router: Tensor
    scaling: float

    def to(self, like: Tensor) -> HydraFactors:
        """The same with another tensor's device and dtype."""
        return HydraFactors(self.A.to(like), self.B.to(like), self.router.to(like), self.scaling)

    def added(self, x: Tensor) -> Tensor:
        """``s sum_i w_i B_i A x``, ``[..., d_out]``.

        Products have the dtype of x. The softmax is in float32 at least, as in the authors' code.

        Args:
            x: ``[..., d_in]``.
        """
        A, B, router = (tensor.to(x.dtype) for tensor in (self.A, self.B, self.router))
        weights = F.linear(x, router).softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))
        h = F.linear(x, A)
        weights = (self.scaling * weights).to(h.dtype)
        return F.linear((weights.unsqueeze(-1) * h.unsqueeze(-2)).flatten(-2), B)


def hydra_state(
    factors: Mapping[str, HydraFactors], *, heads: int, r: int, lora_alpha: float, use_rslora: bool
) -> TunerState:
    """The adapter as it is stored: by site its tensors on the CPU, in float32."""
    fields = {"peft_type": HYDRA, "heads": heads, "r": r, "lora_alpha": lora_alpha, "use_rslora": use_rslora}
    tensors = {}
    for name, own in factors.items():
        for ending, tensor in ((_A, own.A), (_B, own.B), (_ROUTER, own.router)):
            tensors[f"{name}{ending}"] = tensor.detach().float().cpu().contiguous().clone()
    return TunerState(fields, tensors)


def hydra_factors(state: TunerState) -> dict[str, HydraFactors]:
    """An adapter by site.

    Raises:
        DataError: The tensors are not exactly those of the config.
    """
    config, tensors = state.config, state.tensors
    r, heads = int(config["r"]), int(config["heads"])
    scaling = lora_scaling(r, float(config["lora_alpha"]), use_rslora=bool(config["use_rslora"]))
    found = {}
    for site in dict.fromkeys(key.rpartition(".")[0] for key in tensors):
        names = [f"{site}{ending}" for ending in (_A, _B, _ROUTER)]
        if lacking := next((name for name in names if name not in tensors), None):
            _refuse(f"lacks the tensor {lacking!r}")
        A, B, router = (tensors[name] for name in names)
        if {len(A), B.shape[1] // heads} != {r} or B.shape[1] % heads or router.shape != (heads, A.shape[1]):
            _refuse(f"has tensors of {site!r} whose shapes are not those of {heads} heads of rank {r}")
        found[site] = HydraFactors(A, B, router, scaling)
    return found


def _refuse(why: str) -> NoReturn:
    raise DataError(f"the adapter {why}", unchanged="nothing was changed")
