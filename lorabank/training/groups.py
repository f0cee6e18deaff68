"""Modules of one shape side by side, so that a penalty is a few batched products and no loop over modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from lorabank.core.lora import AdapterStack, row_space
from lorabank.training.layer import LoraLinear
from lorabank.training.penalties.base import FactorGroup


class GroupedFactors:
    """Builds the groups of a penalty from the live parameters and the frozen earlier ``lora_A``.

    Args:
        layers: The trainable layers by module name.
        previous: All earlier adapters, None for the first task. Only their A is kept.
        with_basis: Whether an orthonormal basis of the earlier rows is needed (one SVD per module, once).
    """

    def __init__(self, layers: Mapping[str, LoraLinear], previous: AdapterStack | None, *, with_basis: bool) -> None:
        by_shape: dict[tuple[torch.Size, torch.Size], list[str]] = defaultdict(list)
        for name, layer in layers.items():
            by_shape[layer.lora_A.shape, layer.lora_B.shape].append(name)
        self._groups = [
            (
                [layers[name] for name in names],
                _pad([_rows(previous, name, layers[name]) for name in names]),
                _pad([_basis(previous, name, layers[name], with_basis) for name in names]),
            )
            for names in by_shape.values()
        ]

    def __call__(self) -> list[FactorGroup]:
        """The groups with the parameters as they are now, part of the graph."""
        return [
            FactorGroup(
                torch.stack([layer.lora_A for layer in layers]),
                torch.stack([layer.lora_B for layer in layers]),
                previous,
                basis,
            )
            for layers, previous, basis in self._groups
        ]


def _rows(previous: AdapterStack | None, name: str, layer: LoraLinear) -> Tensor:
    if previous is None or name not in previous.modules:
        return layer.lora_A.new_zeros(0, layer.lora_A.shape[1])
    return previous.modules[name].A.to(layer.lora_A)


def _basis(previous: AdapterStack | None, name: str, layer: LoraLinear, wanted: bool) -> Tensor:
    rows = _rows(previous, name, layer)
    return row_space(rows).to(rows) if wanted else rows[:0]


def _pad(rows: list[Tensor]) -> Tensor:
    """Stack ``[R_m, d]`` into ``[M, max R, d]`` with zero rows, detached."""
    longest = max(row.shape[0] for row in rows)
    return torch.stack([torch.nn.functional.pad(row.detach(), (0, 0, 0, longest - row.shape[0])) for row in rows])
