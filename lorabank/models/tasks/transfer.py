"""Between the host and a device, without the one waiting for the other.

Inputs go to a GPU from pinned memory while the host pads the next batch. What a batch gives is not read when it is
ordered: to read it is to wait for all work before it, and the device would have nothing to do until the next batch is
padded. On a CPU there is nothing to wait for, and both are plain copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_WAITING = 2**26
"""Bytes of results that may lie on a device before they are read."""


def sent(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors of a CPU on a device; the host does not wait for the copy."""
    if device.type == "cuda":
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class Results:
    """Arrays that batches fill, each with what it computes for its rows.

    Args:
        arrays: One or more, each with a row for every text; complete after `read`.
        late: Whether values wait on their device; default: where they are on a GPU.
    """

    def __init__(self, *arrays: NDArray[Any], late: bool | None = None) -> None:
        self._arrays = arrays
        self._late = late
        self._rows: list[int] = []
        self._values: list[Sequence[Tensor]] = []
        self._bytes = 0

    def put(self, rows: Sequence[int], *values: Tensor) -> None:
        """The rows of each array, ``[len(rows), ...]``."""
        self._rows.extend(rows)
        self._values.append(values)
        self._bytes += sum(value.nbytes for value in values)
        late = values[0].is_cuda if self._late is None else self._late
        if not late or self._bytes > _WAITING:
            self.read()

    def read(self) -> None:
        """Fill in what waits."""
        if not self._rows:
            return
        for array, parts in zip(self._arrays, zip(*self._values, strict=True), strict=True):
            array[self._rows] = (torch.cat(parts) if len(parts) > 1 else parts[0]).cpu().numpy()
        self._rows, self._values, self._bytes = [], [], 0
