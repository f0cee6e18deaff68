r"""A linear layer whose matrix is kept quantised; what is added to it stands beside it.

With Q the matrix that the quantiser gives back, and frozen factors A [R, d_in], B [d_out, R] and a gain g [d_out]:

    y = g * (x Q^T) + (x A^T) B^T + b,    dL/dx = (dL/dy * g) Q + (dL/dy B) A

A delta weight cannot be added to Q: quantised again, one of 2 % of the weight's norm keeps 2.4 % of itself. So the
past of a bank, what a start takes out of the weight, and a correction of the base all stand beside it. Q is made when
a pass needs it, and once more on the way back: no float copy of it stays in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.quantised.base import Quantiser


class QuantisedLinear(nn.Module):
    """The layer.

    Args:
        quantiser: Made ``kept``.
        kept: What it kept of the matrix.
        shape: ``(d_out, d_in)``.
        dtype: Of the products.
        bias: ``[d_out]`` or None.

    Attributes:
        shape: As given, as tensors have it.
        dtype: As given.
    """

    def __init__(
        self,
        quantiser: Quantiser,
        kept: Mapping[str, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.quantiser = quantiser
        self.shape = torch.Size(shape)
        self.out_features, self.in_features = shape
        self.dtype = dtype
        self._names = tuple(kept)
        self.keep(kept)
        self.register_parameter("bias", None if bias is None else _frozen(bias.to(dtype)))
        for name in ("A", "B", "gain"):
            self.register_parameter(f"beside_{name}", None)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter(self.kept.values())).device

    @property
    def kept(self) -> dict[str, Tensor]:
        """What the quantiser keeps of the matrix, by name; as parameters the names begin with ``kept_``."""
        return {name: getattr(self, f"kept_{name}") for name in self._names}

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """Keep another matrix, ``kept`` being what the quantiser keeps of it, by the same names."""
        for name in self._names:
            self.register_parameter(f"kept_{name}", _frozen(kept[name]))

    @property
    def weight(self) -> Tensor:
        """``diag(g) Q + B A [d_out, d_in]`` in the layer's dtype, made anew: models read it, and starts do."""
        wide = self.quantiser.dequantise(self.kept, self._sizes(), torch.float32)
        A, B, gain = self.beside
        if gain is not None:
            wide = wide * gain[:, None]
        if A is not None and B is not None:
            wide = torch.addmm(wide, B.float(), A.float())
        return wide.to(self.dtype)

    @property
    def beside(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """A, B and the gain beside the matrix."""
        return self.beside_A, self.beside_B, self.beside_gain

    def add_beside(self, A: Tensor, B: Tensor, gain: Tensor | None = None) -> None:
        """Add ``(diag(gain) - 1) W + B A``, W being what the layer stands for now; who shares its tensors keeps them.

        Args:
            A: ``[r, d_in]``.
            B: ``[d_out, r]``.
            gain: ``[d_out]``.
        """
        before_A, before_B, before = self.beside
        A, B = (factor.detach().to(self.device, self.dtype) for factor in (A, B))
        if gain is not None:
            gain = gain.detach().to(self.device, torch.float32)
        if before_A is not None and before_B is not None:
            scaled = before_B if gain is None else (before_B * gain[:, None]).to(self.dtype)
            A, B = torch.cat([before_A, A]), torch.cat([scaled, B], dim=1)
        if before is not None:
            gain = before if gain is None else before * gain
        self.beside_A, self.beside_B = _frozen(A), _frozen(B)
        self.beside_gain = None if gain is None else _frozen(gain)

    @property
    def rank_beside(self) -> int:
        """How many rows A has beside the matrix; 0 where there is none."""
        A, _, _ = self.beside
        return 0 if A is None else len(A)

    def cut_beside(self, rank: int) -> None:
        """Leave the first ``rank`` rows of A and columns of B beside the matrix: what was added later is gone.

        It is exact where no gain was added since.
        """
        A, B, _ = self.beside
        if A is not None and B is not None and rank < len(A):
            for name, left in (("A", A[:rank]), ("B", B[:, :rank].contiguous())):
                self.register_parameter(f"beside_{name}", _frozen(left) if rank else None)

    def product(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """``x W^T [n, d_out]`` of ``rows [n, d_in]``, without the bias; W is what the layer stands for."""
        rows, (A, B, gain) = rows.to(dtype), self.beside
        y = rows @ self._matrix(dtype).mT
        if gain is not None:
            y = (y * gain).to(dtype)
        if A is not None and B is not None:
            y.addmm_(rows @ A.to(dtype).mT, B.to(dtype).mT)
        return y

    def pulled(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        """``g W [n, d_in]`` of a gradient ``g [n, d_out]``."""
        A, B, gain = self.beside
        back = (g if gain is None else (g * gain).to(dtype)) @ self._matrix(dtype)
        if A is not None and B is not None:
            back.addmm_(g @ B.to(dtype), A.to(dtype))
        return back

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        out: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self, dtype)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Its sizes and its quantiser."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.quantiser}"

    def _sizes(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        return self.quantiser.dequantise(self.kept, self._sizes(), dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: QuantisedLinear, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.dtype, ctx.of_rows = layer, dtype, rows.dtype
        bias: Any = layer.bias
        return product(rows, layer, bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return ctx.layer.pulled(gradients[0].to(ctx.dtype), ctx.dtype).to(ctx.of_rows), None, None


Weight = Tensor | QuantisedLinear
"""What stands for ``W [d_out, d_in]`` in a product: the matrix, or the layer that makes it when it is needed."""


def product(rows: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x W^T + b [n, d_out]`` in a dtype, without a graph."""
    own = None if bias is None else bias.to(dtype)
    if isinstance(weight, Tensor):
        return F.linear(rows.to(dtype), weight.to(dtype), own)
    out = weight.product(rows, dtype)
    return out if own is None else out.add_(own)


def pulled(g: Tensor, weight: Weight, dtype: torch.dtype) -> Tensor:
    """``g W [n, d_in]`` in a dtype, without a graph."""
    return g @ weight.to(dtype) if isinstance(weight, Tensor) else weight.pulled(g, dtype)


def not_merged(what: str) -> IncompatibleError:
    """Why a delta weight is not merged into a quantised layer, and what to do."""
    return IncompatibleError(
        f"{what} is quantised, and a delta weight of full rank would be lost in its few bits",
        hint="cut it to a rank with the setting max_rank, or use a bank whose base is not quantised",
        unchanged="nothing was changed",
    )


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
