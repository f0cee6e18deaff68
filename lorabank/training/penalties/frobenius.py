"""Orthogonality by squares: the penalty of O-LoRA with a square in place of the absolute value.

    Frobenius   sum_modules || A_prev A_new^T ||_F^2,    gradient 2 A_new G,    G = A_prev^T A_prev = sum_t A_t^T A_t

``A_prev [R, d_in]`` stacks all earlier ``lora_A`` (`lorabank.training.penalties.orthogonal`). A squared norm needs the
earlier rows only through their Gram matrix G ``[d_in, d_in]``:

    by rows   S = A_new A_prev^T,  value = sum S^2,         slope A_new G = S A_prev     2 r R d_in multiplications
    by Gram   P = A_new G,         value = sum A_new * P,   slope A_new G = P            r d_in^2

so once 2 R > d_in a step costs the same after any number of tasks. G is made once and kept while the rows live.
Both are exact. Large products weigh more than under the absolute value, small ones are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary

from lorabank.training.penalties.base import FactorGroup
from lorabank.training.penalties.norm import WithNorm


@dataclass(frozen=True)
class Frobenius(WithNorm):
    """``sum_modules ||A_prev A_new^T||_F^2``; the default weight is that of the absolute value, not tuned."""

    default_weight = 0.5

    _grams: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary, init=False, repr=False, compare=False)

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over all modules; a group's ``A_prev`` must not be written to between calls."""
        terms = [_squared_overlap(g.A_prev.detach().float(), self._gram(g.A_prev), g.A_new.float()) for g in groups]
        return torch.stack(terms).sum()

    def _gram(self, previous: Tensor) -> Tensor | None:
        """``[M, d_in, d_in]``, None where the rows are fewer numbers to go through."""
        if 2 * previous.shape[1] <= previous.shape[2]:
            return None
        if previous not in self._grams:
            rows = previous.detach().float()
            self._grams[previous] = rows.mT @ rows
        gram: Tensor = self._grams[previous]
        return gram


class _SquaredOverlap(torch.autograd.Function):
    """Value and half the gradient in one pass over the rows or the Gram matrix."""

    @staticmethod
    def forward(ctx: Any, previous: Tensor, gram: Tensor | None, new: Tensor) -> Tensor:
        if gram is None:
            products = new @ previous.mT
            value, slope = products.square().sum(), products @ previous
        else:
            slope = new @ gram
            value = (new * slope).sum().clamp(min=0)  # rounding may take a sum near zero below it
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        (slope,) = ctx.saved_tensors
        return None, None, 2 * gradients[0] * slope


def _squared_overlap(previous: Tensor, gram: Tensor | None, new: Tensor) -> Tensor:
    value: Tensor = _SquaredOverlap.apply(previous, gram, new)  # type: ignore[no-untyped-call]
    return value
