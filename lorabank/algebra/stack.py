r"""Several adapters stacked.

Every state of a bank is ``W + sum_k w_k ((diag(g_k) - 1) W + s_k B_k A_k)``. Stacking the rows of all A and the
columns of all B gives

    sum_k w_k s_k B_k A_k  =  B_all diag(w[owner] * scale) A_all

for any mix of ranks and scalings, where ``owner[i]`` says which adapter row i belongs to; the row gains add up to one
of the sum, ``1 + sum_k w_k (g_k - 1)``. Training, composition and evaluation share this one form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lorabank.algebra.factors import FactorShape, LoraFactors, add_rows


@dataclass(frozen=True)
class StackedFactors:
    """All adapters of one module.

    Attributes:
        A: ``[R, d_in]``, the rows of every adapter's ``lora_A``.
        B: ``[d_out, R]``, the columns of every adapter's ``lora_B``; in memory ``B.T`` is contiguous, so that the
            factors of one adapter lie side by side.
        owner: ``[R]`` int64, the adapter that row i belongs to.
        scale: ``[R]``, the scaling of that adapter.
        gain: ``[K, d_out]``, the row gain of every adapter, 1 where it has none, in float32 or the wider dtype of A;
            None where no adapter has one.
    """

    A: Tensor
    B: Tensor
    owner: Tensor
    scale: Tensor
    gain: Tensor | None = None

    def put(self, row: int, A: Tensor, B: Tensor, gain: Tensor | None = None) -> int:
        """Copy an adapter into the rows from ``row`` on.

        Args:
            row: The first row of an adapter.
            A: ``[r, d_in]``, of any device and dtype, as the others.
            B: ``[d_out, r]``.
            gain: ``[d_out]``, where the adapter has one.

        Returns:
            r.
        """
        r = A.shape[0]
        self.A[row : row + r].copy_(A)
        self.B[:, row : row + r].copy_(B)
        if self.gain is not None:
            self.gain[self.owner[row]] = 1.0 if gain is None else gain.to(self.gain)
        return r

    @cached_property
    def _host_owner(self) -> Tensor:
        """`owner` on the CPU."""
        return self.owner.cpu()

    def row_weights(self, weights: Tensor) -> Tensor:
        """``weights [..., K]`` over adapters as weights ``[..., R]`` over rows, scaling included."""
        return weights[..., self.owner] * self.scale

    def shift(self, weights: Tensor) -> Tensor | None:
        """``weights [..., K]`` as ``sum_k w_k (g_k - 1) [..., d_out]``; None where no adapter has a gain."""
        return None if self.gain is None else weights.to(self.gain) @ (self.gain - 1)

    def delta(self, weights: Tensor, weight: Tensor | None = None) -> Tensor:
        """The weighted sum of the delta weights ``[d_out, d_in]`` in float32; the caller rounds it.

        Which rows count is found on the CPU: a GPU would be waited for, once for each module.

        Args:
            weights: ``[K]``, best on the CPU.
            weight: W, the untouched base's; looked at only where an adapter has a gain.

        Raises:
            ValueError: An adapter that counts has a gain and W is not given.
        """
        counts = weights.cpu() != 0
        used = counts[self._host_owner].nonzero().flatten().to(self.A.device, non_blocking=True)
        weights = weights.to(self.A.device, non_blocking=True)
        rows = self.row_weights(weights.float())[used]
        low = (self.B.T[used].float() * rows[:, None]).T @ self.A[used].float()
        shift = self.shift(weights)
        return low if shift is None or not bool(shift.any()) else add_rows(low, shift, weight)

    def to(self, device: torch.device | str) -> StackedFactors:
        """The same on another device."""
        gain = None if self.gain is None else self.gain.to(device)
        A, B, owner, scale = (part.to(device) for part in (self.A, self.B, self.owner, self.scale))
        return StackedFactors(A, B, owner, scale, gain)

    def select(self, adapters: Sequence[int]) -> StackedFactors:
        """The same module with some adapters only, renumbered in the order given."""
        rows = torch.cat([(self.owner == k).nonzero().flatten() for k in adapters])
        renumber = {k: i for i, k in enumerate(adapters)}
        owner = torch.tensor([renumber[int(k)] for k in self.owner[rows]], dtype=torch.long, device=self.A.device)
        gain = None if self.gain is None else self.gain[list(adapters)]
        if gain is not None and bool((gain == 1).all()):
            gain = None
        return StackedFactors(self.A[rows], self.B.T[rows].T, owner, self.scale[rows], gain)


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
                module: FactorShape(
                    r=a.shape[0],
                    d_in=a.shape[1],
                    d_out=factors.B[module].shape[0],
                    scaling=factors.scaling[module],
                    gain=module in factors.gain,
                )
                for module, a in factors.A.items()
            }
            for name, factors in adapters.items()
        }
        stack = cls.reserve(shapes, device=device, dtype=dtype)
        row = dict.fromkeys(stack.modules, 0)
        for factors in adapters.values():
            for module, a in factors.A.items():
                stacked = stack.modules[module]
                row[module] += stacked.put(row[module], a, factors.B[module], factors.gain.get(module))
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
        count = len(shapes)
        return cls(tuple(shapes), {name: _empty(name, own, count, device, dtype) for name, own in wanted.items()})

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

        Its gain is ``1 + sum_k w_k (g_k - 1)``, in float32, on modules where that is not 1.

        Args:
            weights: ``[K]``; adapters of weight 0 are left out.

        Returns:
            An adapter of rank ``sum of the ranks used``, with ``delta`` equal to the sum of the weighted deltas.
        """
        return self.combine_by_module(dict.fromkeys(self.modules, weights))

    def combine_by_module(self, weights: Mapping[str, Tensor]) -> LoraFactors:
        """As `combine`, with weights ``[K]`` of its own for every module."""
        A, B, gain = {}, {}, {}
        for module, factors in self.modules.items():
            rows = factors.row_weights(weights[module].to(factors.A))
            used = rows != 0
            shift = factors.shift(weights[module])
            gained = shift is not None and bool(shift.any())
            if gained or bool(used.any()):  # in a block an adapter may have a gain alone
                A[module] = factors.A[used].clone()
                B[module] = factors.B[:, used] * rows[used]
            if shift is not None and gained:
                gain[module] = 1 + shift
        return LoraFactors(A, B, dict.fromkeys(A, 1.0), gain)


def _empty(
    module: str,
    adapters: Sequence[tuple[int, FactorShape]],
    count: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> StackedFactors:
    """Room for the adapters on one module, ``(number, shape)`` of each, out of ``count`` that the stack has."""
    sizes = {(shape.d_in, shape.d_out) for _, shape in adapters}
    if len(sizes) > 1:
        raise ValueError(f"adapters see {module!r} in different sizes: {sorted(sizes)}")
    d_in, d_out = sizes.pop()
    gained = any(shape.gain for _, shape in adapters)
    owner = [k for k, shape in adapters for _ in range(shape.r)]
    scale = [shape.scaling for _, shape in adapters for _ in range(shape.r)]
    return StackedFactors(
        torch.empty(len(owner), d_in, device=device, dtype=dtype),
        torch.empty(len(owner), d_out, device=device, dtype=dtype).T,
        torch.tensor(owner, dtype=torch.long, device=device),
        torch.tensor(scale, dtype=torch.float32, device=device).to(dtype),
        torch.ones(count, d_out, device=device, dtype=torch.promote_types(dtype, torch.float32)) if gained else None,
    )
