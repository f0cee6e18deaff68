"""N-LoRA (arXiv 2410.10179): a sparse delta weight, whose few entries seldom collide with those of earlier tasks.

Two tasks collide where both delta weights are not zero. If each has a share p of entries that are not zero, a share of
about p^2 collides, so the paper asks for sparsity and looks at no earlier adapter:

    L1   sum_modules || B A ||_1    the paper's ``lambda ||Delta W||_1``: all entries of the d_out x d_in product

The released code is reported (PKU-YuanGroup/N-LoRA, issue 2, unanswered) to sum over the small r x r product ``A B``
instead, which is another quantity and exists only where d_in = d_out. The authors' lambdas, 0.4 to 1.2, were tuned for
that one and mean nothing here, where thousands of times as many terms are summed. The scaling s is left out, as the
authors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorabank.training.penalties.base import FactorGroup, Penalty


class L1(Penalty):
    """The paper's penalty; the default weight is ours (see the module's text)."""

    default_weight = 1e-5
    paper = "N-LoRA, arXiv 2410.10179"

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over all entries of ``|B A|`` of all modules; no more than one product is in memory at a time."""
        return torch.stack([_delta_l1(group.A_new.float(), group.B_new.float()) for group in groups]).sum()


class _DeltaL1(torch.autograd.Function):
    """``sum |B A|`` with its gradients ``B^T sign(B A)`` and ``sign(B A) A^T``, module by module."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor) -> Tensor:
        total = A.new_zeros(())
        grad_A, grad_B = torch.empty_like(A), torch.empty_like(B)
        with _exact(A):
            for m in range(A.shape[0]):
                delta = B[m] @ A[m]
                total += delta.abs().sum()
                signs = delta.sign_()
                torch.matmul(B[m].T, signs, out=grad_A[m])
                torch.matmul(signs, A[m].T, out=grad_B[m])
        ctx.save_for_backward(grad_A, grad_B)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        grad_A, grad_B = ctx.saved_tensors
        return grad_outputs[0] * grad_A, grad_outputs[0] * grad_B


def _delta_l1(A: Tensor, B: Tensor) -> Tensor:
    value: Tensor = _DeltaL1.apply(A, B)  # type: ignore[no-untyped-call]
    return value


def _exact(like: Tensor) -> torch.autocast:
    """Products in the factors' own precision, also where the trainer runs in mixed precision."""
    return torch.autocast(like.device.type, enabled=False)
