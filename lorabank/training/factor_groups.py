"""Modules of one shape side by side, so that a penalty is a few batched products and no loop over modules.

Of the past only the A factors are kept here, once: B is in the weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorabank.algebra.biases import ENDING
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.subspaces import rank, row_space, subspace_overlaps
from lorabank.models.facts.fisher import Anchor
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.loop.shared_block import Arena
from lorabank.training.penalties.base import FactorGroup

NOBODY = -1
"""Owner of a row that only fills up a group."""


@dataclass(frozen=True)
class _Group:
    """Layers of one shape and their factors, ``A [M, r, d_in]`` and ``B [M, d_out, r]``, beside the earlier rows.

    Of these ``A_prev`` is ``[M, R, d_in]``, ``basis [M, Q, d_in]``, ``owner [M, R]``.

    ``held`` is empty, or A and B of the anchor and then of the importance, each ``[M, ...]``.
    """

    layers: dict[str, LoraLinear]
    A: Arena
    B: Arena
    A_prev: Tensor
    basis: Tensor
    owner: Tensor
    held: tuple[Tensor, ...] = ()


class GroupedFactors:
    """Builds the groups of a penalty from the live parameters and the frozen earlier ``lora_A``.

    Args:
        layers: The trainable layers by module name; their parameters move into the groups' blocks.
        previous: All earlier adapters, None for the first task; not kept.
        with_basis: Whether an orthonormal basis of the earlier rows is needed (one SVD per module, once).
        anchor: Where an adapter that continues training started, and the importance of its entries, of the same rank.
            With another scaling both are converted as the layers' B was.
    """

    def __init__(
        self,
        layers: Mapping[str, LoraLinear],
        previous: AdapterStack | None,
        *,
        with_basis: bool,
        anchor: Anchor | None = None,
    ) -> None:
        self._names = previous.names if previous else ()
        by_shape: dict[tuple[torch.Size, torch.Size], list[str]] = defaultdict(list)
        for name, layer in layers.items():
            by_shape[layer.lora_A.shape, layer.lora_B.shape].append(name)
        self._groups = [_group(names, layers, previous, with_basis, anchor) for names in by_shape.values()]

    def __call__(self) -> list[FactorGroup]:
        """The groups with the parameters as they are now, part of the graph."""
        return [
            FactorGroup(group.A.joined(), group.B.joined(), group.A_prev, group.basis, *group.held)
            for group in self._groups
        ]

    def report(self, new: LoraFactors) -> dict[str, Any]:
        """`overlap_report` of the trained adapter, by site."""
        rows = {}
        for group in self._groups:
            for m, name in enumerate(group.layers):
                known = group.owner[m] != NOBODY
                rows[name] = group.A_prev[m][known], group.owner[m][known]
        return _report(new.A, self._names, rows)


def overlap_report(new: LoraFactors, earlier: AdapterStack | None) -> dict[str, Any]:
    """How far an adapter overlaps each earlier one, and how much room is left.

    Returns:
        ``overlap``: earlier adapter to the mean, over the modules that both adapt, of the mean squared cosine of the
        principal angles; ``capacity_by_module``: module to ``(d_in - rank of all A) / d_in``, 0 when no orthogonal
        direction is left; ``capacity_left``: the smallest of these; ``directions_left``: the smallest
        ``d_in - rank of all A``. A bias reads no input and takes no direction: where all modules are biases, all of
        the capacity is left, and ``directions_left`` is not said.
    """
    rows = {name: (factors.A, factors.owner) for name, factors in earlier.modules.items()} if earlier else {}
    return _report(new.A, earlier.names if earlier else (), rows)


def _report(
    new: Mapping[str, Tensor], names: Sequence[str], earlier: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    shared: dict[str, list[float]] = {name: [] for name in names}
    left, directions = {}, {}
    for module, a in new.items():
        if module.endswith(ENDING):
            continue
        rows, owner = earlier.get(module, (a[:0], torch.zeros(0, dtype=torch.long)))
        rows = rows.to(a)
        used = rank(torch.cat([a, rows]))
        left[module], directions[module] = 1 - used / a.shape[1], a.shape[1] - used
        counts = owner.bincount(minlength=len(names)).tolist()  # the rows of an adapter lie side by side
        adapters = [(name, count) for name, count in zip(names, counts, strict=True) if count]
        values = subspace_overlaps(a, rows, [count for _, count in adapters])
        for (name, _), value in zip(adapters, values, strict=True):
            shared[name].append(value)
    overlap = {name: sum(values) / len(values) if values else 0.0 for name, values in shared.items()}
    tightest: dict[str, Any] = {"capacity_left": min(left.values(), default=1.0)}
    if directions:
        tightest["directions_left"] = min(directions.values())
    return {"overlap": overlap, **tightest, "capacity_by_module": left}


def _group(
    names: list[str],
    layers: Mapping[str, LoraLinear],
    previous: AdapterStack | None,
    with_basis: bool,
    anchor: Anchor | None,
) -> _Group:
    own = {name: layers[name] for name in names}
    rows, owners = [], []
    for name in names:
        like = layers[name].lora_A
        known = previous.modules.get(name) if previous else None
        rows.append(like.new_zeros(0, like.shape[1]) if known is None else known.A.to(like).detach())
        owners.append(torch.zeros(0, dtype=torch.long) if known is None else known.owner.cpu())
    bases = [row_space(row).to(row) if with_basis else row[:0] for row in rows]
    held = tuple(torch.stack(part) for part in zip(*(_held(layers[n], n, anchor) for n in names), strict=True))
    return _Group(
        own,
        Arena([layer.lora_A for layer in own.values()]),
        Arena([layer.lora_B for layer in own.values()]),
        _stacked(rows),
        _stacked(bases),
        _stacked_owners(owners),
        held,
    )


def _held(layer: LoraLinear, name: str, anchor: Anchor | None) -> tuple[Tensor, ...]:
    """Anchor and importance of one module in the layer's own scaling: ``B = c B*`` makes ``F = F* / c^2``."""
    if anchor is None:
        return ()
    A, B = layer.lora_A.detach(), layer.lora_B.detach()
    if name not in anchor.factors.A or name not in anchor.importance.A:
        return A.clone(), B.clone(), torch.zeros_like(A), torch.zeros_like(B)
    c = anchor.factors.scaling[name] / layer.scaling
    kept = anchor.factors.A[name], c * anchor.factors.B[name]
    importance = anchor.importance.A[name], anchor.importance.B[name] / c**2
    return tuple(tensor.to(A) for tensor in (*kept, *importance))


def _stacked(rows: list[Tensor]) -> Tensor:
    """``[R_m, d]`` as ``[M, max R, d]``, filled up with zero rows."""
    longest = max(row.shape[0] for row in rows)
    return torch.stack([pad(row, (0, 0, 0, longest - row.shape[0])) for row in rows])


def _stacked_owners(owners: list[Tensor]) -> Tensor:
    longest = max(owner.shape[0] for owner in owners)
    return torch.stack([pad(owner, (0, longest - owner.shape[0]), value=NOBODY) for owner in owners])
