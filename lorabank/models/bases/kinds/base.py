r"""What a kind of site is.

Every kind keeps a matrix ``W [d_out, d_in]``, and its answers are ``W x + b`` for some rows x of what it reads. In a
linear layer x is the last dimension of the input. In other kinds it is not there as it stands, but four questions can
be asked about it, and training, mixing and facts ask nothing else:

    rows    what stands for the x, one for each row of the answer
    read    x A^T         of rows and A [r, d_in]
    outer   sum_t u_t x_t^T
    matrix  the x themselves, as far as a gate reads them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class SiteKind(ABC):
    """How modules of some classes keep the matrix ``W [d_out, d_in]`` of ``x W^T + b``. It has no state.

    Attributes:
        plain: Whether x is the last dimension of the input, as in a linear layer. Other kinds are adapted only where
            they are named, and answer by the methods of the second half.
        indexed: Whether `rows` are numbers of columns of W, and x has one entry that is not 0.
    """

    plain: ClassVar[bool] = True
    indexed: ClassVar[bool] = False

    @abstractmethod
    def fits(self, kind: type[nn.Module]) -> bool:
        """Whether modules of this class keep theirs so."""

    @abstractmethod
    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """``(d_out, d_in)``, as the module says; what it keeps may be packed."""

    def computes(self, module: nn.Module) -> bool:
        """Whether the module's forward pass is ``x W^T + b``."""
        return True

    def lacks(self, module: nn.Module) -> str:
        """Why it is not, where it is not."""
        return f"{type(module).__name__} is not a plain torch.nn.Linear"

    def matrix(self, module: nn.Module, kept: Tensor) -> Tensor:
        """W of the weight that a module keeps, as a view where that can be."""
        return kept

    def kept(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """A matrix ``[d_out, d_in]`` in the layout of the weight, as a view where that can be."""
        return matrix

    def keeps(self, module: nn.Module, weight: Tensor) -> bool:
        """Whether a floating-point tensor is a weight of the module's, and not something packed."""
        return self.matrix(module, weight).shape == self.sizes(module)

    def put(self, module: nn.Module, weight: nn.Parameter) -> None:
        """Give a module another weight, in its layout."""
        module.weight = weight

    def parts(self, module: nn.Module) -> dict[str, tuple[slice, slice]]:
        """Rows and columns of the blocks outside of which W is 0, by their numbers; none where W is a whole matrix."""
        return {}

    def split(self, module: nn.Module) -> nn.Module:
        """A module that answers as this one does, with its `parts` as submodules.

        Raises:
            ValueError: It has none.
        """
        raise ValueError(f"{type(module).__name__} has no parts")

    # ------------------------------------------------------------------ for kinds whose x is not the last dimension

    def call(self, module: nn.Module, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """What the module answers with another W, ``matrix [d_out, d_in]``, and this bias ``[d_out]``."""
        return F.linear(x, matrix, bias)

    def rows(self, module: nn.Module, x: Tensor) -> Tensor:
        """What stands for the x of an input, ``[..., k]``; the dimensions before the last are those of the answer."""
        return x

    def read(self, module: nn.Module, rows: Tensor, A: Tensor) -> Tensor:
        """``x A^T [..., r]`` of `rows` and ``A [r, d_in]``, differentiable in A."""
        return F.linear(rows, A)

    def outer(self, module: nn.Module, u: Tensor, rows: Tensor) -> Tensor:
        """``sum_t u_t x_t^T [..., r, d_in]`` of ``u [..., t, r]`` and ``rows [..., t, k]``."""
        return u.mT @ rows

    def inputs(self, module: nn.Module, rows: Tensor) -> Tensor:
        """The x of ``rows [n, k]``, ``[n, d_in]``; it may be sparse."""
        return rows

    def down(self, module: nn.Module, x: Tensor, A: Tensor, p: float) -> Tensor:
        """``x A^T [..., r]`` of an input, entries of which are dropped with probability p where there are any."""
        return self.read(module, self.rows(module, F.dropout(x, p)), A)

    def answer_rows(self, module: nn.Module, out: Tensor) -> Tensor:
        """An answer as ``[..., d_out]``, as a view."""
        return out

    def answer(self, module: nn.Module, rows: Tensor) -> Tensor:
        """``[..., d_out]`` in the layout of the module's answers, as a view."""
        return rows

    # ------------------------------------------------------------------------------------------------------ in PEFT

    def in_peft(self, module: nn.Module, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """How PEFT stores ``A [r, d_in]`` and ``B [d_out, r]``: ending of a tensor's name to the tensor."""
        return {"lora_A.weight": A, "lora_B.weight": B}

    def shape_in_peft(self, module: nn.Module) -> tuple[int, ...]:
        """The dimensions of A in PEFT behind its rank."""
        return self.sizes(module)[1:]

    def magnitude_in_peft(self, module: nn.Module, magnitude: Tensor) -> Tensor:
        """DoRA's magnitudes ``[d_out]`` as PEFT stores them."""
        return magnitude

    def not_in_peft(self, module: nn.Module, *, gained: bool) -> str | None:
        """Why PEFT would compute another thing with the same factors; None where it would not.

        Args:
            module: Of a base; it may have no memory for its weight.
            gained: Whether the adapter is stored as DoRA.
        """
        return None


class InPlaceOf(nn.Module):
    """A module in the place of another one.

    Models do more with a module than call it: they read its weight's dtype, add its bias elsewhere, look at its sizes.
    Whatever this one does not have itself is the other one's.

    Args:
        base: The other one.
    """

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":  # it is not set yet
                raise
            return getattr(self.base, name)


class Parts(InPlaceOf):
    """A module as the ones that it consists of, each a submodule under its name.

    Args:
        base: The module, frozen here; it keeps answering for everything but the forward pass.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base.requires_grad_(False))
