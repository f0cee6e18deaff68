"""How the rows of a module's input are read, for the forms in which several adapters answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.models.bases.kinds.base import SiteKind
from lorabank.models.bases.sites import bias_of, kind_of


@dataclass(frozen=True)
class Reads:
    """What a form asks a module.

    Attributes:
        bias: ``[d_out]``, which no row gain multiplies; None where there is none.
        module: The module where its input's last dimension is not x (`lorabank.models.bases.kinds.base`), else None.
        kind: How that module reads.
    """

    bias: Tensor | None = None
    module: nn.Module | None = None
    kind: SiteKind | None = None

    @classmethod
    def of(cls, module: nn.Module) -> Reads:
        """A module that is a site."""
        kind = kind_of(module)
        return cls(bias_of(module)) if kind is None or kind.plain else cls(bias_of(module), module, kind)

    @property
    def indexed(self) -> bool:
        """Whether a row is the number of a column of A, which is then never copied for each sample."""
        return self.kind is not None and self.kind.indexed

    def down(self, rows: Tensor, A: Tensor) -> Tensor:
        """``x A^T [..., r]`` of ``rows [..., k]`` and ``A [r, d_in]``."""
        if self.kind is None or self.module is None:
            return F.linear(rows, A)
        return self.kind.read(self.module, rows, A)

    def inputs(self, rows: Tensor) -> Tensor:
        """The x of ``rows [n, k]``, ``[n, d_in]``; it may be sparse."""
        return rows if self.kind is None or self.module is None else self.kind.inputs(self.module, rows)


LINEAR = Reads()
