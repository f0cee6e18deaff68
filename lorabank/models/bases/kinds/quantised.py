"""A linear layer that keeps its matrix quantised."""

from __future__ import annotations

from torch import nn

from lorabank.models.bases.kinds.base import SiteKind
from lorabank.models.bases.quantised.linear import QuantisedLinear


class Quantised(SiteKind):
    """The matrix is made when it is asked for, and nothing can be merged into it."""

    def fits(self, kind: type[nn.Module]) -> bool:
        """Those that lorabank quantises."""
        return issubclass(kind, QuantisedLinear)

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Its features."""
        assert isinstance(module, QuantisedLinear)
        return module.out_features, module.in_features
