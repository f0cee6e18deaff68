"""Orthogonality penalties: the new adapter's input directions against those of all earlier adapters.

O-LoRA (arXiv 2310.14152), as its reference implementation computes it, with ``A_prev [R, d_in]`` stacking all earlier
``lora_A`` and the sum running over the adapted modules:

    Orthogonal            sum_modules sum_ij | A_prev A_new^T |_ij

with the gradient ``sign(A_prev A_new^T)^T A_prev`` at A_new: two batched products for all modules of one shape.

It has no scale: it grows with modules, rank and tasks, and ``A_new -> 0`` satisfies it. The normalized form has:

    OrthogonalNormalized  mean_modules tr( (A_new A_new^T)^-1 A_new Q^T Q A_new^T ) / r

with Q an orthonormal basis of the rows of A_prev: the mean squared cosine of the principal angles between the two row
spaces. It lies in [0, 1], is ``dim(Q) / d_in`` in expectation for a random A_new, and stays the same under every
invertible recombination of A_new's rows, so it cannot be met by shrinking. The inverse is the pseudoinverse: a row of
A_new that is 0 spans nothing and counts 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorabank.training.penalties.base import FactorGroup
from lorabank.training.penalties.norm import WithNorm


@dataclass(frozen=True)
class Orthogonal(WithNorm):
    """The reference's penalty (its ``lamda_1`` is 0.5 for the short orders)."""

    default_weight = 0.5
    paper = "O-LoRA, arXiv 2310.14152"

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over all entries of ``|A_prev A_new^T|`` of all modules."""
        return torch.stack([_cross_l1(group.A_prev.float(), group.A_new.float()) for group in groups]).sum()


@dataclass(frozen=True)
class OrthogonalNormalized(WithNorm):
    """Mean squared cosine between the row spaces of the new adapter and of all earlier ones."""

    default_weight = 1.0
    needs_basis = True

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Mean over all modules; a module without earlier rows counts as 0."""
        shares = []
        for group in groups:
            A = group.A_new.float()
            sizes = A.detach().norm(dim=-1, keepdim=True)  # of no influence, and so of none on the gradient
            A = A / sizes.where(sizes > 0, 1.0)
            projected = _cross(group.basis_prev, A)
            inverse = torch.linalg.pinv(A @ A.mT, hermitian=True)  # rows may be 0, or repeat others
            inside = inverse @ (projected.mT @ projected)
            shares.append(inside.diagonal(dim1=-2, dim2=-1).sum(-1) / A.shape[1])
        return torch.cat(shares).mean()


class _CrossL1(torch.autograd.Function):
    """``sum |previous new^T|`` with its gradient.

    On a CPU one module comes after the other, so that the second product finds the earlier rows in the cache; a GPU
    takes all modules at once.
    """

    @staticmethod
    def forward(ctx: Any, previous: Tensor, new: Tensor) -> Tensor:
        products = new.new_empty(previous.shape[0], previous.shape[1], new.shape[1])
        slope = torch.empty_like(new)
        several = 1 if new.device.type == "cpu" else len(new)
        blocks = (tensor.split(several) for tensor in (previous, new, products, slope))
        for rows, own, product, part in zip(*blocks, strict=True):
            torch.bmm(rows, own.mT, out=product)
            torch.bmm(product.sign().mT, rows, out=part)
        ctx.save_for_backward(slope)
        return products.abs().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (slope,) = ctx.saved_tensors
        return None, gradients[0] * slope


def _cross_l1(previous: Tensor, new: Tensor) -> Tensor:
    value: Tensor = _CrossL1.apply(previous, new)  # type: ignore[no-untyped-call]
    return value


def _cross(previous: Tensor, new: Tensor) -> Tensor:
    """``previous new^T`` in float32: ``[M, R, d_in], [M, r, d_in] -> [M, R, r]``."""
    return previous.float() @ new.float().mT
