r"""``knots``: TIES in the common space of all adapters (KnOTS, arXiv 2410.19735).

    [delta W_1 ... delta W_T] = U S [V_1^T ... V_T^T]        one decomposition for all tasks, module by module
    delta W = scale U S (TIES of V_1^T ... V_T^T)

Neither the ``d_out x T d_in`` matrix nor any other dense one is formed. With the stacked B of all adapters as ``Q R``
and each ``A_t = L_t P_t`` (P_t with orthonormal rows), U and S are those of the core ``[R_1 L_1 ... R_T L_T]``, which
has at most as many rows and columns as all ranks together; ``B = Q U S`` and ``A`` the merged V^T are the result, an
adapter of that rank.

As in the official code, the V (without S) are merged, trimmed as one vector over the whole model; directions whose
singular value is 0 take no part, there or here. The mean of the V in place of TIES would be the mean of the delta
weights. The paper tunes ``scale`` on validation data; 0.6 is in its settings for ViT-B, 1 the default here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.compose.mergers.base import Sources
from lorabank.compose.mergers.entrywise.entries import Elected, agreed, trimmed
from lorabank.compose.mergers.refusals import check_plain
from lorabank.core.settings import setting

_TOLERANCE = 1e-6
"""Directions whose singular value is below this share of the largest one are rounding."""


@dataclass(frozen=True)
class KnOTS(Elected):
    """TIES of the adapters in the directions that all of them share."""

    paper = "arXiv 2410.19735"

    density: float = setting(0.2, "Share of each task's entries that is kept, those of largest magnitude.", gt=0, le=1)

    def merge(self, sources: Sources) -> LoraFactors:
        """One adapter, of the rank that all have together."""
        adapters = [sources.factors(task) for task in sources.tasks]
        check_plain(sources.tasks, adapters, "knots decomposes low ranks")
        B: dict[str, Tensor] = {}
        V: list[dict[str, Tensor]] = [{} for _ in adapters]
        for module in sources.modules:
            owners = [k for k, adapter in enumerate(adapters) if module in adapter.A]
            B[module], parts = shared_space([(adapters[k].scaled(module), adapters[k].A[module]) for k in owners])
            for k, part in zip(owners, parts, strict=True):
                V[k][module] = part
        vectors = [trimmed(own.get, sources.modules, self.density) for own in V]
        A = agreed(sources.modules, vectors, self.factors_of(sources.tasks))
        return LoraFactors(A, {module: B[module] for module in A}, dict.fromkeys(A, 1.0))


def shared_space(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """``[B_1 A_1 ... B_T A_T] = (U S) [V_1^T ... V_T^T]`` of one module.

    Args:
        factors: ``(B [d_out, r], A [r, d_in])`` of each task, float64.

    Returns:
        U S ``[d_out, R]``, R the rank of the whole; ``V_t^T [R, d_in]`` of each task.
    """
    q, r = torch.linalg.qr(torch.cat([b for b, _ in factors], 1))
    rights = [torch.linalg.qr(a.T) for _, a in factors]
    lefts = r.split([a.shape[0] for _, a in factors], 1)
    cores = [left @ right.R.T for left, right in zip(lefts, rights, strict=True)]
    u, s, wh = torch.linalg.svd(torch.cat(cores, 1), full_matrices=False)
    kept = s > _TOLERANCE * s[0]
    parts = wh[kept].split([core.shape[1] for core in cores], 1)
    return (q @ u[:, kept]) * s[kept], [part @ right.Q.T for part, right in zip(parts, rights, strict=True)]
