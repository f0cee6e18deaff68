"""``Conv1D`` of transformers (GPT-2): a linear layer that keeps its matrix transposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lorabank.models.bases.kinds.base import SiteKind


class Conv1D(SiteKind):
    """Transformers' Conv1D keeps ``[d_in, d_out]``."""

    def fits(self, kind: type[nn.Module]) -> bool:
        """It and its subclasses, recognised by the name: to import it takes as long as a model."""
        return any((one.__module__, one.__name__) == ("transformers.pytorch_utils", "Conv1D") for one in kind.__mro__)

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """As it calls them."""
        conv: Any = module
        return conv.nf, conv.nx

    def computes(self, module: nn.Module) -> bool:
        """A subclass with a forward pass of its own is left alone."""
        from transformers.pytorch_utils import Conv1D as Theirs

        return type(module).forward is Theirs.forward and "forward" not in vars(module)

    def matrix(self, module: nn.Module, kept: Tensor) -> Tensor:
        """Transposed."""
        return kept.T

    def kept(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """Transposed again."""
        return matrix.T
