"""N-LoRA (arXiv 2410.10179): a sparse delta weight, whose few entries seldom collide with those of earlier tasks.

Two tasks collide where both delta weights are not zero. If each has a share p of entries that are not zero, a share of
about p^2 collides, so the paper asks for sparsity and looks at no earlier adapter:

    L1           sum_modules || B A ||_1    the paper's ``lambda ||Delta W||_1``: the whole d_out x d_in product
    L1Released   sum_modules || A B ||_1    what the released code is reported to compute: the small r x r product

The two are not the same quantity (PKU-YuanGroup/N-LoRA, issue 2, unanswered). ``A B`` exists only where d_in = d_out,
which holds for the query and value projections that the authors adapt. Both leave the scaling s out, as they do. Their
lambdas, 0.4 to 1.2, were tuned for the r x r sum and mean nothing for the other, which has thousands of times as many
terms. The released code could not be read here; the form above is that of the issue and of the paper's accounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorabank.core.errors import ConfigError
from lorabank.training.penalties.base import FactorGroup


class L1:
    """The paper's penalty; the default weight is ours (see the module's text)."""

    default_weight = 1e-5

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over all entries of ``|B A|`` of all modules; no more than one product is in memory at a time."""
        return torch.stack([_delta_l1(group.A_new.float(), group.B_new.float()) for group in groups]).sum()


class L1Released:
    """The released code's penalty, for square modules."""

    default_weight = 0.4

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """Sum over all entries of ``|A B|`` (r x r) of all modules.

        Raises:
            ConfigError: A module has unequal input and output widths.
        """
        for group in groups:
            d_in, d_out = group.A_new.shape[2], group.B_new.shape[1]
            if d_in != d_out:
                raise ConfigError(
                    f"penalty 'l1-released' is defined for square modules, not for {d_in} inputs and {d_out} outputs",
                    hint="--penalty l1, or --target-modules with square modules only",
                    unchanged="the bank was not changed",
                )
        with _exact(groups[0].A_new):
            return torch.stack([(group.A_new.float() @ group.B_new.float()).abs().sum() for group in groups]).sum()


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
