"""A safetensors file mapped into memory, for files of which the bank knows the digest.

For the small factors of an adapter, safetensors' own reader spends more on making each tensor than the copy out of the
file takes. Here a tensor is a view of the mapped bytes, and a header that was seen before, as that of adapters of the
same shape, is not parsed again. No file stays open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lorabank.core.errors import DataError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LENGTH = 8
"""Bytes before the header; they hold its length."""


class Entry(NamedTuple):
    """A tensor of the header; ``start`` and ``end`` count bytes from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class MappedTensors:
    """The tensors of one file by name.

    Attributes:
        entries: Name to what the header says.

    Raises:
        DataError: It is not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(_LENGTH), "little")
            header = file.read(min(length, self._size))
        self._path, self._data = path, _LENGTH + length
        try:
            self.entries = _entries(header)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a valid safetensors file: {error!r}") from error
        if any(self._data + entry.end > self._size for entry in self.entries.values()):
            raise DataError(f"{path} is cut off: it has {self._size} bytes")

    def map(self) -> Mapping[str, Tensor]:
        """Every tensor as a view of the file; what is written into one stays in memory."""
        mapped = torch.from_file(str(self._path), shared=False, size=self._size, dtype=torch.uint8)[self._data :]
        return {name: self._tensor(mapped[entry.start : entry.end], entry) for name, entry in self.entries.items()}

    def _tensor(self, data: Tensor, entry: Entry) -> Tensor:
        """A view, or a copy where a header of odd length has put the numbers between two addresses."""
        odd = (self._data + entry.start) % entry.dtype.itemsize
        return (data.clone() if odd else data).view(entry.dtype).view(entry.shape)


@lru_cache(maxsize=64)
def _entries(header: bytes) -> Mapping[str, Entry]:
    found = json.loads(header)
    found.pop("__metadata__", None)
    return {name: _entry(name, **value) for name, value in found.items()}


def _entry(name: str, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> Entry:
    entry = Entry(_DTYPES[dtype], tuple(shape), *data_offsets)
    if not all(type(count) is int and count >= 0 for count in (*shape, *data_offsets)):
        raise ValueError(f"shape or offsets of {name!r} are not counts")
    if entry.end - entry.start != math.prod(shape) * entry.dtype.itemsize:
        raise ValueError(f"the bytes of {name!r} are not what its shape needs")
    return entry
