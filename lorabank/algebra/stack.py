r"""Several adapters stacked.

Every state of a bank is ``W + sum_k w_k s_k B_k A_k``. Stacking the rows of all A and the columns of all B gives

    sum_k w_k s_k B_k A_k  =  B_all diag(w[owner] * scale) A_all

for any mix of ranks and scalings, where ``owner[i]`` says which adapter row i belongs to. Training, composition and
evaluation share this one form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.algebra.factors import FactorShape, LoraFactors


@dataclass(frozen=True)
class StackedFactors:
    """All adapters of one module.

    Attributes:
        A: ``[R, d_in]``, the rows of every adapter's ``lora_A``.
        B: ``[d_out, R]``, the columns of every adapter's ``lora_B``; in memory ``B.T`` is contiguous, so that the
            factors of one adapter lie side by side.
        owner: ``[R]`` int64, the adapter that row i belongs to.
        scale: ``[R]``, the scaling of that adapter.
    """

    A: Tensor
    B: Tensor
    owner: Tensor
    scale: Tensor

    def put(self, row: int, A: Tensor, B: Tensor) -> int:
        """Copy ``A [r, d_in]`` and ``B [d_out, r]``, of any device and dtype, into the rows from ``row`` on; r."""
        r = A.shape[0]
        self.A[row : row + r].copy_(A)
        self.B[:, row : row + r].copy_(B)
        return r

    def first_row(self, adapter: int) -> int:
        """Where the rows of an adapter begin."""
        return int(torch.searchsorted(self.owner, adapter))

    def clear(self, adapter: int) -> None:
        """Make all rows of one adapter 0."""
        own = self.owner == adapter
        self.A[own] = 0
        self.B.T[own] = 0

    def row_weights(self, weights: Tensor) -> Tensor:
        """``weights [..., K]`` over adapters as weights ``[..., R]`` over rows, scaling included."""
        return weights[..., self.owner] * self.scale

    def delta(self, weights: Tensor) -> Tensor:
        """``sum_k w_k s_k B_k A_k [d_out, d_in]`` in float32, rounded by nobody but the caller."""
        rows = self.row_weights(weights.float())
        used = rows != 0
        return (self.B.T[used].float() * rows[used, None]).T @ self.A[used].float()

    def select(self, adapters: Sequence[int]) -> StackedFactors:
        """The same module with some adapters only, renumbered in the order given."""
        rows = torch.cat([(self.owner == k).nonzero().flatten() for k in adapters])
        renumber = {k: i for i, k in enumerate(adapters)}
        owner = torch.tensor([renumber[int(k)] for k in self.owner[rows]], dtype=torch.long, device=self.A.device)
        return StackedFactors(self.A[rows], self.B.T[rows].T, owner, self.scale[rows])


@dataclass(frozen=True)
class AdapterStack:
    """Several adapters over the union of their modules.

    Attributes:
        names: The adapters, in order; weights are indexed like this.
        modules: Module name to its stacked factors; an adapter without that module has no rows there.
    """

    names: tuple[str, ...]
    modules: Mapping[str, StackedFactors]

    @classmethod
    def build(
        cls,
        adapters: Mapping[str, LoraFactors],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> AdapterStack:
        """Stack adapters in the mapping's order."""
        shapes = {
            name: {
                module: FactorShape(a.shape[0], a.shape[1], factors.B[module].shape[0], factors.scaling[module])
                for module, a in factors.A.items()
            }
            for name, factors in adapters.items()
        }
        stack = cls.reserve(shapes, device=device, dtype=dtype)
        row = dict.fromkeys(stack.modules, 0)
        for factors in adapters.values():
            for module, a in factors.A.items():
                row[module] += stack.modules[module].put(row[module], a, factors.B[module])
        return stack

    @classmethod
    def reserve(
        cls, shapes: Mapping[str, Mapping[str, FactorShape]], *, device: torch.device | str, dtype: torch.dtype
    ) -> AdapterStack:
        """Room for adapters, allocated once per module; the factors are then `put` into it.

        Args:
            shapes: Adapter to module to shape; owner and scale follow from it.
            device: Where the stack lies.
            dtype: Of the factors and scale.

        Raises:
            ValueError: Two adapters see a module in different sizes.
        """
        wanted: dict[str, list[tuple[int, FactorShape]]] = {}
        for k, modules in enumerate(shapes.values()):
            for module, shape in modules.items():
                wanted.setdefault(module, []).append((k, shape))
        return cls(tuple(shapes), {module: _empty(module, own, device, dtype) for module, own in wanted.items()})

    def select(self, names: Iterable[str]) -> AdapterStack:
        """The sub-stack of some adapters; modules that none of them has are left out."""
        chosen = tuple(names)
        indices = [self.names.index(name) for name in chosen]
        kept = {
            module: factors.select(indices)
            for module, factors in self.modules.items()
            if any(bool((factors.owner == k).any()) for k in indices)
        }
        return AdapterStack(chosen, kept)

    def combine(self, weights: Tensor) -> LoraFactors:
        """The weighted sum as one exact adapter: factors concatenated, weight and scaling folded into B, s = 1.

        Args:
            weights: ``[K]``; adapters of weight 0 are left out.

        Returns:
            An adapter of rank ``sum of the ranks used``, with ``delta`` equal to the sum of the weighted deltas.
        """
        A, B = {}, {}
        for module, factors in self.modules.items():
            rows = factors.row_weights(weights.to(factors.A))
            used = rows != 0
            if bool(used.any()):
                A[module] = factors.A[used].clone()
                B[module] = factors.B[:, used] * rows[used]
        return LoraFactors(A, B, dict.fromkeys(A, 1.0))


def _empty(
    module: str, adapters: Sequence[tuple[int, FactorShape]], device: torch.device | str, dtype: torch.dtype
) -> StackedFactors:
    sizes = {(shape.d_in, shape.d_out) for _, shape in adapters}
    if len(sizes) > 1:
        raise ValueError(f"adapters see {module!r} in different sizes: {sorted(sizes)}")
    d_in, d_out = sizes.pop()
    owner = [k for k, shape in adapters for _ in range(shape.r)]
    scale = [shape.scaling for _, shape in adapters for _ in range(shape.r)]
    return StackedFactors(
        torch.empty(len(owner), d_in, device=device, dtype=dtype),
        torch.empty(len(owner), d_out, device=device, dtype=dtype).T,
        torch.tensor(owner, dtype=torch.long, device=device),
        torch.tensor(scale, dtype=torch.float32, device=device).to(dtype),
    )
