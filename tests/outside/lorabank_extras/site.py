"""Linear layers that keep their matrix by columns, as JAX and Keras do."""

from __future__ import annotations

from torch import Tensor, nn

from lorabank.models.bases.kinds.base import SiteKind


class Dense(nn.Module):
    """``x K + b`` with a kernel ``K [d_in, d_out]``.

    Args:
        linear: Gives its weight and bias.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.clone())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        out = x @ self.weight
        return out if self.bias is None else out + self.bias


class ByColumns(SiteKind):
    """A dense layer keeps ``[d_in, d_out]``."""

    def fits(self, kind: type[nn.Module]) -> bool:
        """Every subclass of it."""
        return issubclass(kind, Dense)

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """As its kernel has them."""
        assert isinstance(module, Dense)
        d_in, d_out = module.weight.shape
        return d_out, d_in

    def matrix(self, module: nn.Module, kept: Tensor) -> Tensor:
        """Transposed."""
        return kept.T

    def kept(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """Transposed again."""
        return matrix.T
