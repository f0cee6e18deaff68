"""A safetensors file mapped into memory, for files of which the bank knows the digest.

For the small factors of an adapter, safetensors' own reader spends more on making each tensor than the copy out of the
file takes. Here a tensor is a view of the mapped bytes, and a header that was seen before, as that of adapters of the
same shape, is not parsed again. No file stays open.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lorabank.core.errors import DataError
from lorabank.core.files.safetensors_header import TensorInfo, judge_tensors, read_header

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class MappedTensors:
    """The tensors of one file by name.

    Attributes:
        entries: Name to what the header says.

    Raises:
        DataError: It is not a safetensors file, or holds a dtype that no adapter has.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            header, self._size = read_header(file, str(path))
        try:
            self.entries = _entries(header, self._size, path.name)
        except DataError as error:
            raise error.saying(f"{path.parent}/{error.message}") from error

    def map(self) -> Mapping[str, Tensor]:
        """Every tensor as a view of the file; what is written into one stays in memory."""
        mapped = torch.from_file(str(self._path), shared=False, size=self._size, dtype=torch.uint8)
        return {name: _tensor(mapped[entry.start : entry.end], entry) for name, entry in self.entries.items()}


def _tensor(data: Tensor, entry: TensorInfo) -> Tensor:
    """A view, or a copy where a header of odd length has put the numbers between two addresses."""
    dtype = _DTYPES[entry.dtype]
    return (data.clone() if entry.start % dtype.itemsize else data).view(dtype).view(entry.shape)


@lru_cache(maxsize=64)
def _entries(header: bytes, size: int, name: str) -> Mapping[str, TensorInfo]:
    entries = judge_tensors(header, size, name)
    if odd := [entry.dtype for entry in entries if entry.dtype not in _DTYPES]:
        raise DataError(f"{name}: no adapter holds {odd[0]}")
    return {entry.name: entry for entry in entries}
