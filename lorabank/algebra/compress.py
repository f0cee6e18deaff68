"""An adapter cut to a rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorabank.algebra.factors import DenseDelta, LoraFactors


@dataclass(frozen=True)
class Compressed:
    """An adapter cut to a rank and what that cost.

    Attributes:
        factors: The adapter.
        relative_error: Module name to ``||M - M_r||_F / ||M||_F``, M the delta weight without its row gain.
    """

    factors: LoraFactors
    relative_error: Mapping[str, float]


def compress(factors: LoraFactors, max_rank: int) -> Compressed:
    """The best approximation of rank ``max_rank`` of every ``s B A`` (Eckart-Young); a row gain stays as it is.

    The ``d_out x d_in`` matrix is never formed: with ``s B = Q_B R_B`` and ``A^T = Q_A R_A`` the singular values of
    ``s B A`` are those of the small ``R_B R_A^T``; ``B = Q_B U sqrt(S)``, ``A = sqrt(S) V^T Q_A^T``. Modules of one
    shape go through together, in float64.
    """
    groups: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for module, a in factors.A.items():
        groups.setdefault((a.shape, factors.B[module].shape), []).append(module)
    A, B, errors = {}, {}, {}
    for modules in groups.values():
        scaled = [factors.scaling[module] * factors.B[module].double() for module in modules]
        q_b, r_b = torch.linalg.qr(torch.stack(scaled))
        q_a, r_a = torch.linalg.qr(torch.stack([factors.A[module].double().T for module in modules]))
        u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
        rank = min(max_rank, s.shape[-1])
        root = s[:, :rank].sqrt()
        low_b = (q_b @ u[..., :rank]) * root.unsqueeze(-2)
        low_a = (vh[:, :rank] * root.unsqueeze(-1)) @ q_a.mT
        lost, total = s[:, rank:].square().sum(-1).tolist(), s.square().sum(-1).tolist()
        for i, module in enumerate(modules):
            dtype = factors.A[module].dtype
            A[module], B[module] = low_a[i].to(dtype, copy=True), low_b[i].to(dtype, copy=True)
            errors[module] = math.sqrt(lost[i] / total[i]) if total[i] > 0 else 0.0
    in_order = {module: A[module] for module in factors.A}
    cut = LoraFactors(in_order, B, dict.fromkeys(in_order, 1.0), factors.gain)
    return Compressed(cut, {module: errors[module] for module in A})


def compress_dense(dense: DenseDelta, max_rank: int) -> Compressed:
    """The best approximation of rank ``max_rank`` of delta weights of full rank, by their SVD in float64."""
    A, B, errors = {}, {}, {}
    for module, delta in dense.delta.items():
        u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
        root = s[:max_rank].sqrt()
        B[module] = (u[:, :max_rank] * root).to(delta.dtype)
        A[module] = (root.unsqueeze(1) * vh[:max_rank]).to(delta.dtype)
        total = float(s.norm())
        errors[module] = float(s[max_rank:].norm()) / total if total > 0 else 0.0
    return Compressed(LoraFactors(A, B, dict.fromkeys(A, 1.0)), errors)


def cut_to_rank(made: LoraFactors | DenseDelta, max_rank: int) -> Compressed:
    """The best approximation of rank ``max_rank``: `compress` or `compress_dense`."""
    return compress_dense(made, max_rank) if isinstance(made, DenseDelta) else compress(made, max_rank)
