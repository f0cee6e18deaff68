"""What a kind of site is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class SiteKind(ABC):
    """How modules of some classes keep the matrix ``W [d_out, d_in]`` of ``x W^T + b``. It has no state."""

    @abstractmethod
    def fits(self, kind: type[nn.Module]) -> bool:
        """Whether modules of this class keep theirs so."""

    @abstractmethod
    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """``(d_out, d_in)``, as the module says; what it keeps may be packed."""

    def computes(self, module: nn.Module) -> bool:
        """Whether the module's forward pass is ``x W^T + b`` over the last dimension."""
        return True

    def matrix(self, kept: Tensor) -> Tensor:
        """W as a view of the weight that a module keeps."""
        return kept

    def kept(self, matrix: Tensor) -> Tensor:
        """A matrix ``[d_out, d_in]`` in the layout of the weight, as a view."""
        return matrix
