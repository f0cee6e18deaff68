"""What a penalty sees and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class FactorGroup:
    """The new adapter on M modules of one shape, beside all earlier ones.

    Attributes:
        A_new: ``[M, r, d_in]``, trainable.
        B_new: ``[M, d_out, r]``, trainable.
        A_prev: ``[M, R, d_in]``, the stacked rows of every earlier ``lora_A``; an earlier adapter without a module
            has zero rows there. R is 0 for the first task.
        basis_prev: ``[M, Q, d_in]``, an orthonormal basis of the rows of ``A_prev``, padded with zero rows.
        A_anchor: ``[M, r, d_in]``, where the adapter that continues training started; None without an anchor, and so
            are the next three.
        B_anchor: ``[M, d_out, r]``.
        A_importance: ``[M, r, d_in]``, how much each entry of A matters to the tasks before, at least 0.
        B_importance: ``[M, d_out, r]``.
    """

    A_new: Tensor
    B_new: Tensor
    A_prev: Tensor
    basis_prev: Tensor
    A_anchor: Tensor | None = None
    B_anchor: Tensor | None = None
    A_importance: Tensor | None = None
    B_importance: Tensor | None = None


class Penalty(ABC):
    """A scalar that is added to the loss once per optimizer step.

    ``default_weight`` is what a user gets who names no weight, ``needs_basis`` whether `FactorGroup.basis_prev` is
    read, which costs an SVD per module, ``between_tasks`` whether it compares the rows of A with those of earlier
    tasks, ``paper`` where it was published. A penalty with settings is a frozen dataclass of them. The call must be
    differentiable in the new adapter only and zero when there is no earlier adapter (for penalties on the relation to
    earlier ones).
    """

    default_weight: ClassVar[float]
    needs_basis: ClassVar[bool] = False
    between_tasks: ClassVar[bool] = False
    paper: ClassVar[str | None] = None

    @abstractmethod
    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """The penalty, without its weight, as a float32 scalar tensor."""

    def besides(self) -> Sequence[tuple[str, float, Penalty]]:
        """Name, weight and object of each further penalty that its settings ask for; by default none."""
        return ()
